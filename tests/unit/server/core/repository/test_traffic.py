import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import DamagedTraffic, InvalidArgument, NothingToRollBack
from server.core.repository.audit import AuditEntry, append_audit, read_audit
from server.core.repository.traffic import (
    TRAFFIC,
    Guard,
    Traffic,
    change_traffic,
    last_traffic,
    read_traffic,
    rolled_back,
    validated_traffic,
)

KEY = "0123456789abcdef0123456789abcdef"


def canary(percent: float, number: int = 8) -> Traffic:
    return Traffic(stable=7, canary=number, canary_share=percent / 100, key=KEY)


def to(number: int) -> Callable[[Traffic], Traffic]:
    return lambda before: before.with_stable(number).with_answering()


def test_without_a_file_the_newest_release_answers_all_users(tmp_path: Path) -> None:
    assert read_traffic(tmp_path) == Traffic()
    assert not Traffic().is_canary_user("anyone")


@pytest.mark.parametrize("percent", [1.0, 5.0, 50.0])
def test_the_canary_has_its_share_of_100_000_users_within_half_a_point(percent: float) -> None:
    share = sum(canary(percent).is_canary_user(f"user-{number}") for number in range(100_000)) / 1000
    assert abs(share - percent) < 0.5


@given(st.text(), st.floats(0.1, 99), st.floats(0.1, 99))
def test_a_larger_share_only_adds_users(user_id: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert canary(small).is_canary_user(user_id) <= canary(large).is_canary_user(user_id)


def test_another_canary_or_another_key_chooses_other_users() -> None:
    users = [f"user-{number}" for number in range(2000)]
    first = [canary(50).is_canary_user(user) for user in users]
    for other in (canary(50, number=9), canary(50).model_copy(update={"key": KEY[::-1]})):
        same = sum(one == two for one, two in zip(first, map(other.is_canary_user, users), strict=True))
        assert 850 < same < 1150


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"canary": 8, "canary_share": 0.05}, "stable release must be named"),
        ({"stable": 7, "canary": 8}, "go together"),
        ({"stable": 7, "canary": 7, "canary_share": 0.05}, "canary of itself"),
        ({"stable": 7, "shadow": 7}, "answers already"),
        ({"stable": 7, "canary": 8, "canary_share": 1}, "canary_share"),
        ({"stable": 7, "guard": {"max_error_share": 0.1}}, "there is none"),
        ({"stable": -1}, "stable"),
    ],
)
def test_inconsistent_traffic_is_refused(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        validated_traffic(fields)


def test_a_guard_without_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="one bound"):
        Guard()


def test_a_change_is_in_the_file_and_in_the_audit_log(tmp_path: Path) -> None:
    change_traffic(tmp_path, to(7), "traffic", "ada", "first")
    after = change_traffic(tmp_path, lambda before: before.with_answering(8, 0.05), "traffic", "ada", "try it")
    assert read_traffic(tmp_path) == after
    assert (after.stable, after.canary, after.canary_share, after.changed_by) == (7, 8, 0.05, "ada")
    entries = read_audit(tmp_path)
    assert [(entry.who, entry.what, entry.release, entry.reason) for entry in entries] == [
        ("ada", "traffic", 7, "first"),
        ("ada", "traffic", 8, "try it"),
    ]
    assert last_traffic(tmp_path) == after


def test_a_change_is_on_disk_before_it_is_in_force_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut, a file that was not synced may be empty, and a name that was not synced the old one."""
    steps: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        steps.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        steps.append(f"rename to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    change_traffic(tmp_path, to(2), who="a", what="traffic", reason="")
    assert [step for step in steps if "audit" not in step] == [
        f"sync .{TRAFFIC}.{os.getpid()}",
        f"rename to {TRAFFIC}",
        f"sync {tmp_path.name}",
    ]


def test_the_key_stays_when_shares_change(tmp_path: Path) -> None:
    first = change_traffic(tmp_path, to(7), "traffic", "ada")
    assert len(first.key) == 32
    assert change_traffic(tmp_path, to(8), "traffic", "ada").key == first.key


def test_a_refused_change_leaves_the_traffic_unchanged(tmp_path: Path) -> None:
    before = change_traffic(tmp_path, to(7), "traffic", "ada")
    with pytest.raises(InvalidArgument):
        change_traffic(tmp_path, lambda traffic: traffic.with_answering(7, 0.05), "traffic", "ada")
    assert read_traffic(tmp_path) == before
    assert len(read_audit(tmp_path)) == 1


@pytest.mark.parametrize("text", ["", "{", '{"stable": "x"}', '{"unknown": 1}', '{"stable": 7, "canary": 8}'])
def test_a_damaged_file_gives_a_clear_error_and_is_replaced_by_the_next_change(tmp_path: Path, text: str) -> None:
    change_traffic(tmp_path, to(7), "traffic", "ada")
    (tmp_path / TRAFFIC).write_text(text)
    with pytest.raises(DamagedTraffic, match="segrec-train traffic"):
        read_traffic(tmp_path)
    assert last_traffic(tmp_path).stable == 7
    assert change_traffic(tmp_path, to(8), "traffic", "ada").previous == (7,)
    assert read_traffic(tmp_path).stable == 8


def test_rolling_back_takes_out_the_canary_first_then_goes_back_step_by_step() -> None:
    good = [5, 6, 7, 8]
    now = (
        Traffic().with_stable(5).with_stable(6).with_stable(7).with_answering(8, 0.05, guard=Guard(max_error_share=0.1))
    )
    now, summary = rolled_back(now, good)
    assert (now.stable, now.canary, now.guard) == (7, 0, None)
    assert summary == "Release 8 is no longer the canary; release 7 answers all users."
    now, summary = rolled_back(now, good)
    assert (now.stable, now.previous) == (6, (5,))
    assert summary == "Release 6 answers instead of release 7."
    now, _ = rolled_back(now, good)
    assert (now.stable, now.previous) == (5, ())
    with pytest.raises(NothingToRollBack, match="release 5 has no earlier"):
        rolled_back(now, good)


def test_rolling_back_skips_missing_and_failed_releases() -> None:
    now = Traffic().with_stable(5).with_stable(6).with_stable(7)
    assert rolled_back(now, [5, 7])[0].stable == 5


def test_rolling_back_from_the_newest_release_goes_to_the_next_older_one() -> None:
    now, _ = rolled_back(Traffic(), [3, 4])
    assert now.stable == 3
    with pytest.raises(NothingToRollBack):
        rolled_back(Traffic(), [4])
    with pytest.raises(NothingToRollBack):
        rolled_back(Traffic(), [])


def test_rolling_back_to_the_shadow_ends_the_shadow() -> None:
    now = Traffic().with_stable(6).with_stable(7).with_answering(shadow=6)
    assert (rolled_back(now, [6, 7])[0].shadow, rolled_back(now, [6, 7])[0].stable) == (0, 6)


def test_named_releases() -> None:
    assert Traffic().named_releases() == set()
    assert Traffic().with_stable(6).with_stable(7).with_answering(8, 0.01, shadow=9).named_releases() == {6, 7, 8, 9}


def test_a_line_that_a_crash_cut_off_is_skipped(tmp_path: Path) -> None:
    append_audit(tmp_path, AuditEntry(who="ada", what="publish", release=1))
    with (tmp_path / "audit.jsonl").open("a") as file:
        file.write('{"who": "ada", "wh')
    assert [entry.release for entry in read_audit(tmp_path)] == [1]
    append_audit(tmp_path, AuditEntry(who="ada", what="publish", release=2))
    assert [entry.release for entry in read_audit(tmp_path)] == [1, 2]


def test_a_full_disk_leaves_the_traffic_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = change_traffic(tmp_path, to(7), "traffic", "ada")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.core.repository.traffic.append_audit", full)
    with pytest.raises(OSError, match="No space"):
        change_traffic(tmp_path, to(8), "traffic", "ada")
    assert read_traffic(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {TRAFFIC, "audit.jsonl", ".traffic.lock"}


def test_the_newest_release_is_never_rolled_back_to_itself() -> None:
    """As after `newest=100` while the newest one was named before."""
    after, _ = rolled_back(Traffic(previous=(8, 7)), [6, 7, 8])
    assert (after.stable, after.previous) == (7, ())


def test_a_partly_written_line_is_removed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_audit(tmp_path, AuditEntry(who="ada", what="publish", release=1))
    write = os.write
    monkeypatch.setattr("server.core.repository.audit.os.write", lambda file, line: write(file, line[:10]))
    with pytest.raises(OSError, match="No space"):
        append_audit(tmp_path, AuditEntry(who="ada", what="publish", release=2))
    assert [entry.release for entry in read_audit(tmp_path)] == [1]
    assert (tmp_path / "audit.jsonl").read_bytes().count(b"\n") == 1


def test_the_audit_names_the_canary_that_was_taken_out(tmp_path: Path) -> None:
    change_traffic(tmp_path, to(7), "traffic", "ada")
    change_traffic(tmp_path, lambda before: before.with_answering(8, 0.05), "traffic", "ada")
    change_traffic(tmp_path, lambda before: rolled_back(before, [7, 8])[0], "rollback", "ada")
    change_traffic(tmp_path, lambda before: before.with_answering(8, 0.05), "traffic", "ada")
    change_traffic(tmp_path, to(8), "traffic", "ada")
    assert [entry.release for entry in read_audit(tmp_path)] == [7, 8, 8, 8, 8]
