"""Two releases of planted logs, end to end: ids stay, and what appears, vanishes, splits and merges is told as that."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from server.core.profiles import Migration
from server.core.release import Release
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from server.core.segments import normalised
from tests.support.logs import planted_items, planted_log
from tests.support.releases import write_mean_encoder
from training.config import Config
from training.data.prepare import prepare
from training.publish.publish import Push, publish
from training.runs import Run
from training.segments.migration import read_migration
from training.segments.segment import segment

GROUPS, ITEMS, DIM, USERS = 6, 60, 16, 60
"""Planted groups, their items in all, and users of each group."""

MONTH_MS = 30 * 24 * 3_600_000


def planted_run(
    directory: Path,
    name: str,
    groups: Sequence[int],
    *,
    late: Sequence[int] = (),
    alike: Sequence[int] = (),
    noise: float = 0.05,
    encoder_seed: int = 0,
    **settings: object,
) -> Run:
    """A run up to `export` on the users of some groups; those of `late` came a month after the others.

    The encoder tells groups apart, but for those that are `alike`.
    """
    events, _ = planted_log(USERS * GROUPS, ITEMS, GROUPS, events_per_user=15, noise=noise)
    group = pl.col("user_id").str.slice(1).cast(pl.Int32) % GROUPS
    moved = pl.col("timestamp") + pl.when(group.is_in(list(late))).then(MONTH_MS).otherwise(0)
    log = events.filter(group.is_in(list(groups))).with_columns(moved).sort("timestamp", maintain_order=True)
    log.write_csv(directory / f"{name}.csv")
    planted_items(ITEMS, GROUPS).write_parquet(directory / "items.parquet")
    run = Run.create(directory / "runs", run_id=name)
    choices = {"k": len(groups), "min_segment_size": 10} | settings
    prepare(
        run, directory / f"{name}.csv", directory / "items.parquet", None, Config.model_validate({"segment": choices})
    )
    for stage in ("train", "evaluate"):
        with run.stage(stage):
            pass
    with run.stage("export") as export:
        shutil.copyfile(run.path / "prepare" / "preprocessing.json", export.directory / "preprocessing.json")
        rng = np.random.default_rng(encoder_seed)
        item_ids = pl.read_parquet(run.path / "prepare" / "items.parquet")["item_id"]
        axes = np.array([int(item_id[1:]) % GROUPS for item_id in item_ids])
        axes[np.isin(axes, alike)] = min(alike, default=0)
        basis = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
        vectors = (3 * basis[axes] + rng.normal(scale=0.1, size=(len(axes), DIM))).astype(np.float32)
        write_mean_encoder(export.directory / "model.onnx", vectors, rng)
        np.save(export.directory / "item_embeddings.npy", vectors)
    return run


def released(run: Run, repository: Path) -> Release:
    """Published whatever its quality: the encoders are planted, to tell groups apart and not what comes next."""
    segment(run, repository)
    push = Push(forced="a planted encoder")
    return read_release(repository / MODEL_NAME / str(publish(run, repository, push)))


def ids_of(run: Run) -> dict[int, int]:
    """The segment id of each planted group: where most of its users are."""
    group = pl.col("user_id").str.slice(1).cast(pl.Int32) % GROUPS
    found = assignments(run).group_by(group.alias("group")).agg(pl.col("segment_id").mode().first())
    return dict(found.iter_rows())


def assignments(run: Run) -> pl.DataFrame:
    return pl.read_parquet(run.path / "segment" / "assignments.parquet")


def changes(migration: Migration) -> dict[str, object]:
    """All that is told but flows, where there is any."""
    told = migration.model_dump(include={"born_segment_ids", "retired_segment_ids", "splits", "merges"})
    return {name: value for name, value in told.items() if value}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def test_the_first_release_has_no_migration(tmp_path: Path, repository: Path) -> None:
    assert released(planted_run(tmp_path, "one", [0, 1]), repository).migration is None


def test_a_group_of_new_users_appears(tmp_path: Path, repository: Path) -> None:
    released(planted_run(tmp_path, "one", [0, 1, 2]), repository)
    second = planted_run(tmp_path, "two", [0, 1, 2, 3], late=[3], encoder_seed=4)
    migration = released(second, repository).migration
    assert migration is not None
    assert migration.user_count == 3 * USERS
    assert ids_of(second)[3] == 4
    assert changes(migration) == {"born_segment_ids": (4,)}
    assert (0, 4) in {(flow.from_segment_id, flow.to_segment_id) for flow in migration.flows}


def test_a_group_that_left_vanishes_and_its_id_is_not_used_again(tmp_path: Path, repository: Path) -> None:
    first = planted_run(tmp_path, "one", [0, 1, 2])
    released(first, repository)
    gone = ids_of(first)[2]
    second = released(planted_run(tmp_path, "two", [0, 1], encoder_seed=4), repository)
    assert second.migration is not None
    assert changes(second.migration) == {"retired_segment_ids": (gone,)}
    third = released(planted_run(tmp_path, "three", [0, 1, 2], late=[2]), repository)
    assert third.migration is not None
    assert changes(third.migration) == {"born_segment_ids": (4,)}


def test_a_segment_that_an_encoder_tells_apart_splits(tmp_path: Path, repository: Path) -> None:
    first = planted_run(tmp_path, "one", [0, 1, 2], alike=[1, 2], k=2)
    released(first, repository)
    whole = ids_of(first)[1]
    second = planted_run(tmp_path, "two", [0, 1, 2], encoder_seed=4)
    migration = released(second, repository).migration
    assert migration is not None
    pieces = tuple(sorted((ids_of(second)[1], ids_of(second)[2])))
    assert whole in pieces
    assert changes(migration) == {
        "born_segment_ids": (3,),
        "splits": ({"from_segment_ids": (whole,), "to_segment_ids": pieces},),
    }


def test_segments_that_an_encoder_tells_apart_no_longer_merge(tmp_path: Path, repository: Path) -> None:
    first = planted_run(tmp_path, "one", [0, 1, 2])
    released(first, repository)
    parts = tuple(sorted((ids_of(first)[1], ids_of(first)[2])))
    second = planted_run(tmp_path, "two", [0, 1, 2], alike=[1, 2], k=2, encoder_seed=4)
    migration = released(second, repository).migration
    assert migration is not None
    heir = ids_of(second)[1]
    assert changes(migration) == {
        "retired_segment_ids": tuple({*parts} - {heir}),
        "merges": ({"from_segment_ids": parts, "to_segment_ids": (heir,)},),
    }


@pytest.mark.parametrize("start", ["k-means++", "previous"])
def test_another_seed_keeps_the_ids_of_users_whose_segment_is_clear(
    tmp_path: Path, repository: Path, start: str
) -> None:
    """On a log most of whose events are noise, so that not every segment is clear."""
    first = planted_run(tmp_path, "one", range(6), noise=0.75, min_confidence=0.8)
    released(first, repository)
    second = planted_run(tmp_path, "two", range(6), noise=0.75, encoder_seed=4, seed=7, start=start)
    segment(second, repository)
    both = assignments(first).join(assignments(second), on="user_id")
    clear = both.filter("confident")
    assert 100 < len(clear) < len(both)
    assert np.mean((clear["segment_id"] == clear["segment_id_right"]).to_numpy()) >= 0.95


def test_a_start_from_segments_that_are_not_there_is_said(tmp_path: Path, repository: Path) -> None:
    found = segment(planted_run(tmp_path, "one", [0, 1], start="previous"), repository)
    assert any("no previous segments to start from" in note for note in found.notes)


def test_a_log_that_begins_after_the_release_is_matched_by_what_users_did_since(
    tmp_path: Path, repository: Path
) -> None:
    released(planted_run(tmp_path, "one", [0, 1, 2]), repository)
    later = planted_run(tmp_path, "two", [0, 1, 2], late=[0, 1, 2], encoder_seed=4)
    found = segment(later, repository)
    assert found.born == found.retired == ()
    assert any("begins after the data of release 1 ends" in note for note in found.notes)


def test_groups_below_the_least_size_go_into_the_nearest(tmp_path: Path, repository: Path) -> None:
    run = planted_run(tmp_path, "one", range(6), min_segment_size=70, k=5)
    found = segment(run, repository)
    sizes = assignments(run)["segment_id"].value_counts()["count"].to_numpy()
    assert sizes.min() >= 70
    assert len(found.profiles) == len(sizes) < 5
    assert any("fewer than 70 users" in note for note in found.notes)
    assert read_release(repository / MODEL_NAME / str(publish(run, repository))).manifest.min_segment_size == 70


def test_what_the_run_says_of_doubt_is_what_the_release_says(tmp_path: Path, repository: Path) -> None:
    run = planted_run(tmp_path, "one", range(6), noise=0.6, min_confidence=0.8)
    found = segment(run, repository)
    release = read_release(repository / MODEL_NAME / str(publish(run, repository)))
    curve = release.manifest.confidence
    assert curve is not None
    assert curve.min_confidence == 0.8
    users = assignments(run)
    points = normalised(np.load(run.path / "segment" / "user_embeddings.npy"))
    near, far = np.sort(np.linalg.norm(points[:, None] - release.centroids, axis=2))[:, :2].T
    expected = np.interp((far - near) / (far + near), curve.margins, curve.stays)
    np.testing.assert_allclose(users["confidence"].to_numpy(), expected, atol=1e-5)
    assert (users["confident"] == (users["confidence"] >= 0.8)).all()
    assert found.doubtful_share == pytest.approx(1 - np.mean(users["confident"].to_numpy()), abs=1e-6)
    assert found.confidence_error is not None
    assert found.confidence_error < 0.15
    assert (users["runner_up_segment_id"] != users["segment_id"]).all()


def test_a_log_that_is_too_short_to_tell_says_so_and_goes_on(tmp_path: Path, repository: Path) -> None:
    run = planted_run(tmp_path, "one", [0], k=2, min_history=16)
    found = segment(run, repository)
    assert any("have no confidence" in note for note in found.notes)
    release = read_release(repository / MODEL_NAME / str(publish(run, repository)))
    assert release.manifest.confidence is None
    users = assignments(run)
    assert users["confidence"].null_count() == len(users)
    assert users["confident"].all()


def test_a_run_published_again_says_that_all_stay(tmp_path: Path, repository: Path) -> None:
    run = planted_run(tmp_path, "one", [0, 1])
    released(run, repository)
    again = read_release(repository / MODEL_NAME / str(publish(run, repository)))
    assert again.migration is not None
    assert again.migration.previous_release == 1
    assert changes(again.migration) == {}
    assert {(flow.from_segment_id, flow.to_segment_id, flow.user_count) for flow in again.migration.flows} == {
        (1, 1, USERS),
        (2, 2, USERS),
    }


def test_the_stage_leaves_no_migration_of_an_earlier_fit(tmp_path: Path, repository: Path) -> None:
    run = planted_run(tmp_path, "one", [0, 1])
    released(run, repository)
    segment(run, repository)
    assert read_migration(run.path / "segment") is not None
    segment(run, tmp_path / "empty")
    assert read_migration(run.path / "segment") is None
