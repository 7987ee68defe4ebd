"""Rules by themselves: what a rule needs, when it holds, and which rules contradict each other."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from server.core.rules import Rule, Rules

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def rule(kind: str, rule_id: str = "one", **fields: Any) -> Rule:
    return Rule.model_validate({"rule_id": rule_id, "kind": kind, **fields})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "boost", "item_ids": ["a"]}, "a boost needs factor"),
        ({"kind": "boost", "item_ids": ["a"], "factor": 1.0}, "greater than 1"),
        ({"kind": "ban", "item_ids": ["a"], "factor": 2.0}, "a ban needs nothing more"),
        ({"kind": "ban"}, "name the items"),
        ({"kind": "pin", "item_ids": ["a", "b"], "place": 1}, "a pin is for one item"),
        ({"kind": "pin", "categories": ["a"], "place": 1}, "a pin is for one item"),
        ({"kind": "pin", "item_ids": ["a"], "place": 0}, "greater than or equal to 1"),
        ({"kind": "replace", "item_ids": ["a"], "replacement_item_id": "a"}, "by itself"),
        ({"kind": "boost", "item_ids": ["a"], "factor": 2.0, "per": "seller"}, "only a cap"),
        ({"kind": "ban", "item_ids": ["a"], "start_time": NOON, "end_time": NOON}, "ends before it starts"),
        ({"kind": "ban", "item_ids": ["a"], "rule_id": "Not an id"}, "rule_id"),
        ({"kind": "ban", "item_ids": ["a"] * 10_001}, "at most 10,000"),
    ],
)
def test_a_rule_says_what_is_wrong_with_it(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Rule.model_validate({"rule_id": "one", **fields})


def test_a_rule_holds_from_its_start_until_before_its_end() -> None:
    timed = rule("ban", item_ids=["a"], start_time=NOON, end_time=NOON + HOUR)
    seconds = NOON.timestamp()
    assert [timed.is_valid_at(seconds + more) for more in (-1, 0, 3599, 3600)] == [False, True, True, False]
    rules = Rules(rules=(timed, rule("ban", "always", item_ids=["b"])))
    assert [one.rule_id for one in rules.valid_at(seconds - 1)] == ["always"]
    assert [rules.next_change(seconds + more) for more in (-1, 0)] == [seconds, seconds + 3600]
    assert rules.next_change(seconds + 3600) == float("inf")


@pytest.mark.parametrize(
    ("one", "other", "is_refused"),
    [
        ({}, {}, True),
        ({"segment_ids": [1, 2]}, {"segment_ids": [2]}, True),
        ({"segment_ids": [1]}, {"segment_ids": [2]}, False),
        ({"end_time": NOON}, {"start_time": NOON}, False),
        ({"end_time": NOON + HOUR}, {"start_time": NOON}, True),
    ],
)
def test_two_pins_of_one_place_are_refused_where_they_meet(
    one: dict[str, Any], other: dict[str, Any], is_refused: bool
) -> None:
    pins = [rule("pin", "one", item_ids=["a"], place=1, **one), rule("pin", "two", item_ids=["b"], place=1, **other)]
    if not is_refused:
        Rules(rules=tuple(pins))
        return
    with pytest.raises(ValidationError, match="'one' and 'two' pin the same place"):
        Rules(rules=tuple(pins))


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="two rules are called 'one'"):
        Rules(rules=(rule("ban", item_ids=["a"]), rule("ban", item_ids=["b"])))
