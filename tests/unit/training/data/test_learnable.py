"""Logs from which nothing can be learned are refused when they are prepared."""

from pathlib import Path

import pytest

from training.config import Config
from training.data.prepare import PrepareResult, prepare
from training.errors import LogError
from training.runs import Run


def prepared(tmp_path: Path, rows: list[str], **settings: object) -> PrepareResult:
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["user_id,item_id,action,value,timestamp", *rows, ""]))
    return prepare(Run.create(tmp_path / "runs"), path, None, None, Config.model_validate(settings))


def rows(users: int, items: int, events: int, action: str = "view", value: str = "1") -> list[str]:
    """Events of each user, of one item after the other, an hour apart."""
    places = [(user, place) for user in range(users) for place in range(events)]
    return [f"u{user},i{place % items},{action},{value},{1_700_000_000 + place * 3600}" for user, place in places]


def test_one_item(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"^All 20 events to train on are of one item, `i0`: there is nothing to choose"):
        prepared(tmp_path, rows(2, 1, 10))


def test_one_item_that_is_left_after_cleaning(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"^All 20 events to train on are of one item, `i0`.*what cleaning dropped"):
        prepared(tmp_path, [*rows(2, 1, 10), "u0,rare,view,1,1700000000"], clean={"min_events_per_item": 2})


def test_only_returns(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"are returns or dislikes.*: `return` -1\. Give .* \[actions\]"):
        prepared(tmp_path, rows(2, 3, 10, "return"))
    assert prepared(tmp_path, rows(2, 3, 10, "return"), actions={"return": 0}).items == 3
    assert prepared(tmp_path, [*rows(2, 3, 10, "return"), *rows(1, 3, 1)]).items == 3


def test_one_event_a_user(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="Every user has one event to train on"):
        prepared(tmp_path, [*rows(1, 1, 1), "u1,i1,view,1,1700000000"])
    assert prepared(tmp_path, rows(1, 2, 2)).users == 1


@pytest.mark.parametrize("value", ["1.7976931348623157E+308", "-1.7976931348623157E+308", "1e200", "inf"])
def test_values_that_stand_for_nothing_are_missing(tmp_path: Path, value: str) -> None:
    result = prepared(
        tmp_path, [*rows(2, 3, 10, value="2"), *rows(1, 3, 1, "buy", value), *rows(1, 3, 1, "cart", "1e150")]
    )
    [step] = [step for step in result.account.steps if step.name == "infinite value"]
    assert (step.rows_in, step.rows_changed, step.rows_dropped) == (22, 1, 0)
    assert step.why == "infinite, or beyond 1e+150, so treated as missing"
    assert result.preprocessing.value.method == "log"
    assert result.preprocessing.value.scale < 1_000
