"""Versions of the operators' rules on disk: one in force, each change once, damage that names its place."""

from pathlib import Path
from threading import Barrier, Thread

import pytest

from server.core.errors import DamagedRules, NotFound, RulesChanged
from server.core.repository.audit import read_audit
from server.core.repository.rules import newest_version, put_version, read_rules_file, read_version, versions
from server.core.rules import Rule, Rules

BAN = Rules(rules=(Rule(rule_id="gone", kind="ban", item_ids=("a",)),))


def test_the_newest_version_is_in_force_and_the_others_stay(tmp_path: Path) -> None:
    assert newest_version(tmp_path) is None
    put_version(tmp_path, BAN, "ada", "recalled", 0)
    put_version(tmp_path, Rules(), "bo", "", 1)
    newest = newest_version(tmp_path)
    assert newest is not None
    assert (newest.version, newest.who, newest.rules) == (2, "bo", Rules())
    assert read_version(tmp_path, 1).rules == BAN
    assert [(entry.what, entry.who, entry.reason) for entry in read_audit(tmp_path)] == [
        ("rules", "ada", "recalled"),
        ("rules", "bo", ""),
    ]
    with pytest.raises(NotFound, match="no version 7"):
        read_version(tmp_path, 7)


def test_of_many_changes_at_once_one_is_made(tmp_path: Path) -> None:
    ready, made, refused = Barrier(8), [], []

    def change(who: str) -> None:
        ready.wait()
        try:
            made.append(put_version(tmp_path, BAN, who, "", 0).who)
        except RulesChanged as error:
            refused.append(str(error))

    threads = [Thread(target=change, args=(f"author {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions(tmp_path) == [1]
    assert [read_version(tmp_path, 1).who] == made
    assert len(refused) == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[rules]]\nrule_id = 'a'\nkind = 'ban'\nitem_ids = ['x']\nitems = ['y']", "rules.1.items: Extra inputs"),
        ("[[rules]]\nrule_id = 'a'\nkind = 'boost'\nitem_ids = ['x']", "rules.1: a boost needs factor"),
        ("[[rules]]\nrule_id = 'a'\nkind = 'ban'\nitem_ids = ['x']\nend_time = 2026-01-01T00:00:00", "timezone"),
        ("[[rules]", "is no TOML file"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(DamagedRules, match=said):
        read_rules_file(path)
    with pytest.raises(DamagedRules, match="cannot be read"):
        read_rules_file(tmp_path / "missing.toml")


def test_a_damaged_version_names_its_file(tmp_path: Path) -> None:
    put_version(tmp_path, BAN, "ada", "", 0)
    (tmp_path / "rules" / "1.json").write_text("{")
    with pytest.raises(DamagedRules, match=r"1\.json: .*put a sound version in force"):
        newest_version(tmp_path)
