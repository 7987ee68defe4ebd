"""Rules that come into force, begin and end while a server runs, and damage that changes nothing."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.core.repository.rules import put_version
from server.core.rules import Rule, Rules
from server.releases.rules_watcher import RulesWatcher

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


def test_rules_begin_and_end_by_the_clock(tmp_path: Path) -> None:
    now = NOON.timestamp() - 1
    watcher = RulesWatcher(tmp_path, lambda: now)
    timed = Rule(rule_id="noon", kind="ban", item_ids=("a",), start_time=NOON, end_time=NOON + timedelta(seconds=2))
    put_version(tmp_path, Rules(rules=(timed,), action_weights={"view": 2.0}), "ada", "", 0)
    found = []
    for _ in range(4):
        watcher.refresh()
        found.append(watcher.in_force.valid)
        now += 1
    assert found == [(), (timed,), (timed,), ()]
    assert watcher.in_force.rules.action_weights == {"view": 2.0}


def test_what_was_compiled_stays_until_the_rules_change(tmp_path: Path) -> None:
    rules = Rules(rules=(Rule(rule_id="a", kind="ban", item_ids=("a",)),))
    put_version(tmp_path, rules, "ada", "", 0)
    watcher = RulesWatcher(tmp_path)
    watcher.refresh()
    watcher.in_force.compiled[1] = "of release 1"
    watcher.refresh()
    assert watcher.in_force.compiled == {1: "of release 1"}
    watcher.in_force.forget_release(1)
    watcher.in_force.forget_release(2)
    assert watcher.in_force.compiled == {}
    watcher.in_force.compiled[1] = "of release 1"
    put_version(tmp_path, Rules(), "ada", "", 1)
    watcher.refresh()
    assert (watcher.in_force.valid, watcher.in_force.compiled) == ((), {})


def test_damaged_rules_leave_the_last_good_ones_and_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = Rules(rules=(Rule(rule_id="a", kind="ban", item_ids=("a",)),))
    put_version(tmp_path, rules, "ada", "", 0)
    watcher = RulesWatcher(tmp_path)
    watcher.refresh()
    (tmp_path / "rules" / "2.json").write_text("{")
    watcher.refresh()
    watcher.refresh()
    assert watcher.in_force.valid == rules.rules
    assert [record.message for record in caplog.records if "stay in force" in record.message] != []
    assert len([record for record in caplog.records if "stay in force" in record.message]) == 1
