"""What is asked of the traffic at the command line, and the way back."""

from pathlib import Path

import pytest

from server.core.errors import DamagedRelease, NothingToRollBack
from server.core.repository.audit import read_audit
from server.core.repository.layout import MODEL_NAME
from server.core.repository.traffic import TRAFFIC, Guard, Traffic, read_traffic
from tests.support.releases import tiny_release
from training.errors import ConfigError, PublishError
from training.publish.traffic import TrafficChange, parse_guard, parse_shadow, parse_shares, roll_back, set_traffic


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        tiny_release(tmp_path, number)
    return tmp_path


def put(repository: Path, *shares: str, shadow: str | None = None, guard: str | None = None) -> tuple[int, int, float]:
    wanted = TrafficChange(
        parse_shares(shares) if shares else None,
        None if shadow is None else parse_shadow(shadow),
        None if guard is None else parse_guard(guard),
    )
    after = set_traffic(repository, wanted, "ada", "a test")
    assert after == read_traffic(repository)
    return after.stable, after.canary, after.canary_percent


def damage(repository: Path, number: int) -> None:
    (repository / MODEL_NAME / str(number) / "centroids.npy").write_bytes(b"")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["2=100"], (2, 0, 0.0)),
        (["2=95 3=5"], (2, 3, 5.0)),
        (["3=5 2=95"], (2, 3, 5.0)),
        (["2=100", "3=5"], (2, 3, 5.0)),
        (["2=99.9 3=0.1"], (2, 3, 0.1)),
        (["2=95 3=5", "2=5 3=95"], (2, 3, 95.0)),
        (["2=95 3=5", "3=30"], (2, 3, 30.0)),
        (["2=100", "2=5 3=95"], (2, 3, 95.0)),
        (["2=100", "2=50 3=50"], (2, 3, 50.0)),
        (["3=100", "2=95 3=5"], (2, 3, 5.0)),
        (["2=95 3=5", "3=100"], (3, 0, 0.0)),
        (["2=95 3=5", "newest=100"], (0, 0, 0.0)),
        (["2=5"], (3, 2, 5.0)),
    ],
    ids=lambda value: " then ".join(value) if isinstance(value, list) else "",
)
def test_shares_say_who_is_stable_and_who_the_canary(
    repository: Path, steps: list[str], expected: tuple[int, int, float]
) -> None:
    found = (0, 0, 0.0)
    for step in steps:
        found = put(repository, *step.split())
    assert found == expected


@pytest.mark.parametrize(
    ("before", "shares", "problem"),
    [
        ("2=100", "2=5", r"Say who answers the other 95 %, as in `2=5 OTHER=95`"),
        ("2=100", "newest=5", r"`newest` takes all users"),
        ("2=100", "2=50 3=40", r"sum to 90, and must sum to 100"),
        ("2=100", "1=30 2=30 3=40", r"Give one release 100, or two"),
        ("2=100", "newest=95 3=5", r"Give one release 100, or two"),
        ("2=100", "2=0.5 3=99.5", r"This traffic cannot be: canary_percent"),
    ],
)
def test_shares_that_do_not_fit_are_told(repository: Path, before: str, shares: str, problem: str) -> None:
    put(repository, before)
    with pytest.raises(ConfigError, match=problem):
        put(repository, *shares.split())
    assert read_traffic(repository).stable == 2
    assert len(read_audit(repository)) == 1


@pytest.mark.parametrize("text", ["8", "8=", "8=x", "8=0", "8=101", "8=nan", "x=5", "08=5x", "-1=5", "=5", "0=5"])
def test_a_share_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="is no share of a release"):
        parse_shares([text])


def test_two_shares_of_one_release_are_told() -> None:
    with pytest.raises(ConfigError, match="two shares"):
        parse_shares(["8=5", "8=95"])


def test_only_whole_releases_that_are_there_can_be_named(repository: Path) -> None:
    with pytest.raises(PublishError, match=r"no release 9 .*there: 1, 2, 3"):
        put(repository, "9=100")
    damage(repository, 3)
    with pytest.raises(DamagedRelease, match=r"centroids\.npy is not the file"):
        put(repository, "2=95", "3=5")
    assert not (repository / TRAFFIC).exists()


def test_shadow_and_guard_stay_until_they_make_no_sense(repository: Path) -> None:
    guard = Guard(max_error_share=0.01)
    put(repository, "2=95", "3=5", shadow="1", guard="errors=0.01")
    put(repository, "2=90", "3=10")
    now = read_traffic(repository)
    assert (now.shadow, now.guard, now.canary_percent) == (1, guard, 10.0)
    put(repository, guard="none")
    assert read_traffic(repository).guard is None
    put(repository, guard="errors=0.01")
    put(repository, "3=100")
    now = read_traffic(repository)
    assert (now.stable, now.shadow, now.guard) == (3, 1, None)
    put(repository, "3=95", "1=5")
    assert read_traffic(repository).shadow == 0


def test_a_shadow_can_be_given_and_taken_alone(repository: Path) -> None:
    assert put(repository, shadow="1") == (3, 0, 0.0)
    assert read_traffic(repository).shadow == 1
    put(repository, shadow="none")
    assert read_traffic(repository).shadow == 0


def test_a_repository_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="cannot be changed: No such file"):
        set_traffic(tmp_path / "none", TrafficChange({1: 100.0}), "ada")


@pytest.mark.parametrize(
    ("text", "guard"),
    [
        ("errors=0.01", Guard(max_error_share=0.01)),
        (
            "errors=0.01,degraded=0.05,unconfident=0.5,p99=50ms,window=60s,min=7",
            Guard(
                max_error_share=0.01,
                max_degraded_share=0.05,
                max_unconfident_share=0.5,
                max_p99_seconds=0.05,
                window_seconds=60,
                min_answer_count=7,
            ),
        ),
        ("p99=0.25", Guard(max_p99_seconds=0.25)),
    ],
)
def test_a_guard_in_short(text: str, guard: Guard) -> None:
    assert parse_guard(text) == guard


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("speed=3", "does not know `speed=3`.*errors, degraded, unconfident, p99, window, min"),
        ("errors", "does not know `errors`"),
        ("errors=2", "errors: Input should be less"),
        ("window=30", "one bound at least"),
        ("errors=nan", "errors: "),
    ],
)
def test_a_guard_that_is_none_is_told(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_guard(text)


def test_rolling_back_goes_step_by_step_and_into_the_audit(repository: Path) -> None:
    put(repository, "2=100")
    put(repository, "3=5")
    assert roll_back(repository, "ada", "odd items")[1] == ("Release 3 is no canary any more; release 2 answers all.")
    after, summary = roll_back(repository, "ada")
    assert (after.stable, summary) == (3, "Release 3 answers in the place of release 2.")
    assert [entry.what for entry in read_audit(repository)] == ["traffic", "traffic", "rollback", "rollback"]
    assert read_audit(repository)[2].reason == "odd items"


def test_rolling_back_from_the_newest_pins_the_one_before(repository: Path) -> None:
    assert roll_back(repository, "ada")[0].stable == 2


def test_rolling_back_passes_over_damaged_releases(repository: Path) -> None:
    damage(repository, 2)
    assert roll_back(repository, "ada")[0].stable == 1


def test_rolling_back_begins_with_the_newest_good_release(repository: Path) -> None:
    damage(repository, 3)
    after, summary = roll_back(repository, "ada")
    assert (after.stable, summary) == (1, "Release 1 answers in the place of release 2.")


def test_without_an_earlier_release_nothing_is_rolled_back(repository: Path) -> None:
    put(repository, "1=100")
    (repository / TRAFFIC).write_text(Traffic(stable=1).model_dump_json())
    with pytest.raises(NothingToRollBack, match="release 1 has no earlier"):
        roll_back(repository, "ada")
