"""Operators' rules through the command line and a running server: in force within a second, named, taken back."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from segrec import SegrecClient
from segrec.v1.segrec_service_pb2 import ItemReason, RecommendedItem, ScorePart
from typer.testing import CliRunner

from tests.support.releases import item_id, tiny_release
from tests.support.server import StartServer
from tests.support.waiting import wait_until
from training.cli.main import app

pytestmark = pytest.mark.timeout(120)
PIN = """
[[rules]]
rule_id = "front-window"
kind = "pin"
item_ids = ["item-050"]
place = 2

[[rules]]
rule_id = "autumn"
kind = "boost"
categories = ["category-2"]
factor = 1000000.0

[[rules]]
rule_id = "recalled"
kind = "ban"
item_ids = ["item-002"]
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    tiny_release(tmp_path / "repository")
    return tmp_path / "repository"


@pytest.fixture
def client(repository: Path, start_server: StartServer) -> Iterator[SegrecClient]:
    with SegrecClient(start_server(directory=repository.parent).address, timeout_seconds=20) as connected:
        yield connected


def command(repository: Path, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["rules", *arguments, "--repository", str(repository)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def items(client: SegrecClient) -> list[RecommendedItem]:
    return list(client.recommend(user_id="nobody", top_k=5, explain=True).items)


def test_rules_hold_within_a_second_and_are_taken_back(client: SegrecClient, repository: Path, tmp_path: Path) -> None:
    before = [item.item_id for item in items(client)]
    assert before == [item_id(number) for number in range(1, 6)]
    file = tmp_path / "rules.toml"
    file.write_text(PIN)
    said = command(repository, "put", str(file), "--reason", "autumn sale", "--by", "ada")
    assert "Version 1, 3 rules, by ada" in said
    wait_until(lambda: items(client)[1].item_id == item_id(50), timeout=5)
    first, pinned, *others = items(client)
    assert list(pinned.rule_ids) == ["autumn", "front-window"]  # item 50 is of category 2 as well
    assert pinned.reason == ItemReason.ITEM_REASON_RULE
    assert [item.item_id for item in (first, *others)] == [item_id(number) for number in (6, 10, 14, 18)]
    for item in (first, *others):
        parts = {part.part: part.value for part in item.explanation.parts}
        assert list(item.rule_ids) == ["autumn"]
        assert item.reason == ItemReason.ITEM_REASON_RULE
        assert item.score == pytest.approx(item.explanation.base + sum(parts.values()), abs=1e-3)
        assert parts[ScorePart.SCORE_PART_RULE] == pytest.approx(13.8155, abs=1e-3)
    assert item_id(2) not in {item.item_id for item in client.similar_items(item_id(6), top_k=50).items}
    assert "autumn sale" in command(repository, "show")
    file.write_text("")
    command(repository, "put", str(file))
    wait_until(lambda: [item.item_id for item in items(client)] == before, timeout=5)
    assert "Version 3, 3 rules" in command(repository, "restore", "1")
    wait_until(lambda: items(client)[1].item_id == item_id(50), timeout=5)
    assert command(repository, "history").count("Version ") == 3


def test_streams_follow_the_rules_too(client: SegrecClient, repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(PIN)
    command(repository, "put", str(file))
    wait_until(lambda: items(client)[1].item_id == item_id(50), timeout=5)
    [row] = list(client.stream_recommend(["nobody"], top_k=5))
    assert row.result.items[1].item_id == item_id(50)
    assert row.result.removed_item_count == 1


def test_what_is_wrong_or_unknown_is_said_and_changes_nothing(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rules]]\nrule_id = "a"\nkind = "boost"\nitem_ids = ["x"]')
    assert "rules.1: a boost needs factor" in command(repository, "put", str(file), code=1)
    assert "There are no rules" in command(repository, "show")
    file.write_text('[[rules]]\nrule_id = "a"\nkind = "ban"\nitem_ids = ["x"]\nsellers = ["Ana"]\nsegment_ids = [77]')
    said = command(repository, "put", str(file))
    assert "Release 1 knows no item x" in said
    assert "Release 1 knows no seller Ana" in said
    assert "Release 1 knows no segment 77" in said
    assert "no version 9" in command(repository, "restore", "9", code=1)
    assert json.loads((repository / "rules" / "1.json").read_text())["version"] == 1
