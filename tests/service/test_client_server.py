"""The client and its command against the real server."""

import csv
from pathlib import Path

import pytest
from segrec import Event, ModelClient, SegrecClient, UserEvent
from segrec.cli import main
from segrec.errors import InvalidArgument, NotFound
from segrec.v1.segrec_service_pb2 import Strategy

from tests.support.client_cli import records
from tests.support.server import ServerProcess

USERS = [f"client-{n}" for n in range(500)]


def test_events_segments_and_streams_agree(running_server: ServerProcess, tmp_path: Path) -> None:
    users, out = tmp_path / "users.txt", tmp_path / "out.csv"
    users.write_text("\n".join([*USERS, "x" * 300, "NULL"]), encoding="utf-8")
    with SegrecClient(running_server.address, timeout_seconds=20) as client:
        item_ids = [item.item_id for item in client.recommend("nobody-at-all", top_k=2).items]
        events = [
            UserEvent(user_id=user_id, event=Event(item_id=item_ids[n % 2], action="view"))
            for n, user_id in enumerate(USERS)
        ]
        assert client.record(events).stored_count == len(USERS)
        assert client.record(events).duplicate_count == len(USERS)
        one = client.segment(USERS[0])
    address = ["--address", running_server.address]
    assert main.main(["stream", "--users", str(users), "--out", str(out), "--chunk-size", "64", *address]) == 5
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["user_id"] for row in rows] == [*USERS, "x" * 300, ""]
    assert [row["code"] for row in rows] == ["OK"] * len(USERS) + ["INVALID_ARGUMENT"] * 2
    assert [row["input_row"] for row in rows] == [str(number) for number in range(1, len(USERS) + 3)]
    assert rows[-1]["message"] == "The user id is empty", "not the index in its chunk"
    assert float(rows[0]["distance"]) == pytest.approx(one.assignment.distance, abs=1e-5)


def test_errors_name_the_field(running_server: ServerProcess) -> None:
    with SegrecClient(running_server.address, timeout_seconds=20) as client:
        with pytest.raises(InvalidArgument) as caught:
            client.recommend("a", top_k=501)
        assert "top_k" in caught.value.field
        with pytest.raises(NotFound):
            client.get_segment(1_000_000)
    with ModelClient(running_server.model_address, timeout_seconds=20) as models, pytest.raises(NotFound):
        models.get_release(999)


def test_an_explanation_sums_to_the_score_and_is_shown_as_a_table(
    running_server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    with SegrecClient(running_server.address, timeout_seconds=20) as client:
        shown = client.recommend("nobody-at-all", top_k=2).items
        client.record([UserEvent(user_id="curious", event=Event(item_id=shown[0].item_id, action="view"))])
        answer = client.recommend("curious", explain=True, exclude_seen=True)
        assert answer.strategy == Strategy.STRATEGY_HYBRID
        assert answer.removed_item_count == 1
        for item in answer.items:
            parts = {one.part: one.value for one in item.explanation.parts}
            assert item.explanation.base + sum(parts.values()) == pytest.approx(item.score, abs=1e-4)
        assert not client.recommend("curious").items[0].HasField("explanation")
        assert client.recommend("nobody-at-all").strategy == Strategy.STRATEGY_POPULAR
    address = ["--address", running_server.address]
    assert main.main(["recommend", "curious", "--explain", "--exclude-seen", "--top-k", "3", *address]) == 0
    heading, columns, *lines = capsys.readouterr().out.splitlines()
    assert "by hybrid, items filtered out: 1" in heading
    assert columns.split()[:5] == ["rank", "item", "title", "score", "base"]
    assert {"encoder", "segment", "popularity"} <= set(columns.split())
    assert len(lines) == 3 + 1 + 3  # each item again, under a heading, with what counts of the history
    assert main.main(["recommend", "curious", "--explain", "--json", *address]) == 0
    [record] = records(capsys.readouterr().out)
    assert record["strategy"] == "hybrid"
    for item in record["items"]:
        assert item["base"] + sum(item["parts"].values()) == pytest.approx(item["score"], abs=1e-4)
