"""Changes of the traffic in a repository, and the way back; tests/contract/test_traffic_commands.py has the grammar."""

from pathlib import Path

import pytest

from server.core.errors import DamagedRelease, NothingToRollBack
from server.core.repository.audit import read_audit
from server.core.repository.layout import MODEL_NAME
from server.core.repository.traffic import TRAFFIC, Traffic, read_traffic
from tests.support.releases import tiny_release
from training.errors import PublishError
from training.publish.traffic import roll_back, set_traffic


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        tiny_release(tmp_path, number)
    return tmp_path


def put(repository: Path, *shares: str) -> Traffic:
    after = set_traffic(repository, shares, None, None, "ada", "a test")
    assert after == read_traffic(repository)
    return after


def damage(repository: Path, number: int) -> None:
    (repository / MODEL_NAME / str(number) / "centroids.npy").write_bytes(b"")


def test_one_change_counts_where_the_newest_good_release_answers(repository: Path) -> None:
    damage(repository, 3)
    after = put(repository, "1=5")
    assert (after.stable, after.canary, after.previous) == (2, 1, ())


def test_only_whole_releases_that_are_there_can_be_named(repository: Path) -> None:
    with pytest.raises(PublishError, match=r"no release 9 .*there: 1, 2, 3"):
        put(repository, "9=100")
    damage(repository, 3)
    with pytest.raises(DamagedRelease, match=r"centroids\.npy is not the file"):
        put(repository, "2=95", "3=5")
    assert not (repository / TRAFFIC).exists()


def test_a_repository_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="cannot be changed: No such file"):
        set_traffic(tmp_path / "none", ["1=100"], None, None, "ada")


def test_rolling_back_goes_step_by_step_and_into_the_audit(repository: Path) -> None:
    put(repository, "2=100")
    put(repository, "3=5")
    assert roll_back(repository, "ada", "odd items")[1] == (
        "Release 3 is no longer the canary; release 2 answers all users."
    )
    after, summary = roll_back(repository, "ada")
    assert (after.stable, summary) == (3, "Release 3 answers instead of release 2.")
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
    assert (after.stable, summary) == (1, "Release 1 answers instead of release 2.")


def test_without_an_earlier_release_nothing_is_rolled_back(repository: Path) -> None:
    put(repository, "1=100")
    (repository / TRAFFIC).write_text(Traffic(stable=1).model_dump_json())
    with pytest.raises(NothingToRollBack, match="release 1 has no earlier"):
        roll_back(repository, "ada")
