"""Pruning: what goes, and what is needed and stays."""

from datetime import timedelta
from pathlib import Path

import pytest

from server.core.errors import DamagedTraffic
from server.core.release import Manifest
from server.core.repository.audit import read_audit
from server.core.repository.layout import MODEL_NAME
from server.core.repository.traffic import TRAFFIC, Traffic
from tests.support.releases import CUTOFF, tiny_release
from training.errors import PublishError
from training.publish.prune_releases import prune
from training.repository import locked, release_numbers

KEY = "0" * 32


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for number in range(1, 9):
        tiny_release(tmp_path, number)
    return tmp_path


def put(repository: Path, traffic: Traffic) -> None:
    (repository / TRAFFIC).write_text(traffic.model_dump_json())


def damage(repository: Path, number: int) -> None:
    (repository / MODEL_NAME / str(number) / "centroids.npy").write_bytes(b"")


def test_the_newest_stay(repository: Path) -> None:
    done = prune(repository, 3, "ada", "room")
    assert done.gone == (1, 2, 3, 4, 5)
    assert release_numbers(repository) == [6, 7, 8] == list(done.kept)
    assert not list((repository).glob(".pruned/*"))
    [entry] = read_audit(repository)
    assert (entry.who, entry.what, entry.reason, entry.details["gone"]) == ("ada", "prune", "room", [1, 2, 3, 4, 5])
    assert entry.details["freed_bytes"] == done.freed_bytes > 5_000


def test_a_dry_run_only_tells(repository: Path) -> None:
    assert prune(repository, 3, "ada", dry_run=True).gone == (1, 2, 3, 4, 5)
    assert release_numbers(repository) == list(range(1, 9))
    assert read_audit(repository) == []


def test_nothing_to_take_out(repository: Path) -> None:
    assert prune(repository, 8, "ada").gone == ()
    assert read_audit(repository) == []


def test_what_the_traffic_names_and_a_rollback_needs_stays(repository: Path) -> None:
    key = "0" * 32
    put(repository, Traffic(stable=3, canary=5, canary_share=0.05, shadow=1, previous=(2, 6, 4), key=key))
    assert prune(repository, 1, "ada").gone == (4, 6, 7)
    assert release_numbers(repository) == [1, 2, 3, 5, 8]


def test_a_rollback_without_a_memory_goes_to_the_next_older_one_which_stays(repository: Path) -> None:
    put(repository, Traffic(stable=5, key="0" * 32))
    damage(repository, 4)
    assert prune(repository, 1, "ada").kept == (3, 5, 8)
    (repository / TRAFFIC).unlink()
    assert prune(repository, 1, "ada").kept == (5, 8)


def test_damaged_releases_do_not_count_among_the_good_ones(repository: Path) -> None:
    damage(repository, 8)
    damage(repository, 6)
    assert prune(repository, 2, "ada").kept == (5, 6, 7, 8)


@pytest.mark.parametrize(
    ("traffic", "gone", "overdue"),
    [
        (Traffic(), (1, 2, 3, 4, 5, 6, 7), (8,)),
        (Traffic(stable=5, key=KEY), (1, 2, 3, 4, 6, 7, 8), (5,)),
        (
            Traffic(stable=5, canary=8, canary_share=0.05, shadow=2, previous=(3, 4), key=KEY),
            (1, 4, 6, 7),
            (2, 3, 5, 8),
        ),
    ],
)
def test_beyond_the_retention_only_what_the_traffic_names_stays(
    repository: Path, traffic: Traffic, gone: tuple[int, ...], overdue: tuple[int, ...]
) -> None:
    put(repository, traffic)
    assert prune(repository, 8, "ada", data_before=CUTOFF).gone == ()
    done = prune(repository, 8, "ada", data_before=CUTOFF + timedelta(seconds=1))
    assert (done.gone, done.kept, done.overdue) == (gone, overdue, overdue)
    assert release_numbers(repository) == list(overdue)


def test_a_release_without_a_clock_is_as_old_as_its_creation(repository: Path) -> None:
    path = repository / MODEL_NAME / "1" / "manifest.json"
    manifest = Manifest.model_validate_json(path.read_bytes()).model_copy(update={"data_cutoff_time": None})
    path.write_text(manifest.model_dump_json())
    later = manifest.created_time + timedelta(seconds=1)
    assert prune(repository, 8, "ada", data_before=manifest.created_time).gone == (2, 3, 4, 5, 6, 7)
    assert prune(repository, 8, "ada", data_before=later).gone == (1,)


def test_with_damaged_traffic_nobody_knows_what_is_needed(repository: Path) -> None:
    (repository / TRAFFIC).write_text("{")
    with pytest.raises(DamagedTraffic):
        prune(repository, 1, "ada")
    assert release_numbers(repository) == list(range(1, 9))


def test_while_somebody_publishes_nothing_is_pruned(repository: Path) -> None:
    with locked(repository), pytest.raises(PublishError, match="Somebody else is publishing"):
        prune(repository, 1, "ada")


def test_what_a_crash_left_goes_with_the_next_prune(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "training.publish.prune_releases.shutil.rmtree", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            prune(repository, 7, "ada")
    assert release_numbers(repository) == list(range(2, 9))
    assert len(list(repository.glob(".pruned/*/1"))) == 1
    prune(repository, 6, "ada")
    assert not list(repository.glob(".pruned*"))
