"""Migrations of planted assignments, and of K-means on planted points."""

import numpy as np
import pytest
from numpy.typing import NDArray

from server.core.profiles import Change, Migration
from training.kmeans.settings import KMeansSettings
from training.segments.clusters import cluster
from training.segments.matching import match_segments
from training.segments.migration import Overlap, migration_of, migration_sentences

SMALLEST = 50


def migrate(
    previous: NDArray[np.int64], now: NDArray[np.intp], known_ids: list[int], smallest: int = SMALLEST
) -> Migration:
    """The migration of users: `previous` (U,) is a segment id, 0 for a new user; `now` (U,) is a cluster from 0."""
    rows = np.flatnonzero(previous)
    count, next_id = int(now.max()) + 1, max(known_ids) + 1
    matching = match_segments(previous[rows], now[rows], count, known_ids, next_id)
    overlap = Overlap.of(previous[rows], rows, now, known_ids, matching.segment_ids)
    return migration_of(1, overlap, matching, smallest)


def flows(migration: Migration) -> list[tuple[int, int, int]]:
    return [(flow.from_segment_id, flow.to_segment_id, flow.user_count) for flow in migration.flows]


def changes(migration: Migration) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    kinds = {"splits": migration.splits, "merges": migration.merges}
    return {name: [(c.from_segment_ids, c.to_segment_ids) for c in found] for name, found in kinds.items() if found}


def test_a_refit_of_the_same_users_changes_nothing() -> None:
    migration = migrate(np.repeat([1, 2], [200, 100]), np.repeat([1, 0], [200, 100]), [1, 2])
    assert flows(migration) == [(1, 1, 200), (2, 2, 100)]
    assert [flow.share for flow in migration.flows] == [1.0, 1.0]
    assert (migration.born_segment_ids, migration.retired_segment_ids, changes(migration)) == ((), (), {})
    assert migration_sentences(migration) == ["Of 300 users known to release 1, 100% are still in the same segment."]


def test_a_segment_of_new_users_appears() -> None:
    migration = migrate(np.repeat([1, 2, 0], [200, 100, 80]), np.repeat([0, 1, 2], [200, 100, 80]), [1, 2])
    assert flows(migration) == [(1, 1, 200), (2, 2, 100), (0, 3, 80)]
    assert (migration.born_segment_ids, migration.retired_segment_ids, changes(migration)) == ((3,), (), {})
    assert migration.user_count == 300
    assert "Segment 3 is new." in migration_sentences(migration)


def test_a_segment_whose_users_left_vanishes() -> None:
    migration = migrate(np.repeat([1, 2], [200, 100]), np.repeat([0, 1], [200, 100]), [1, 2, 3])
    assert (migration.born_segment_ids, migration.retired_segment_ids, changes(migration)) == ((), (3,), {})


def test_a_segment_whose_users_scattered_vanishes_without_a_merge() -> None:
    """A third each goes to three segments that are large beside it."""
    previous = np.concatenate([np.repeat([1, 2, 3], 400), np.repeat(4, 180)])
    now = np.concatenate([np.repeat([0, 1, 2], 400), np.repeat([0, 1, 2], 60)])
    migration = migrate(previous, now, [1, 2, 3, 4])
    assert (migration.retired_segment_ids, changes(migration)) == ((4,), {})
    assert [flow for flow in flows(migration) if flow[0] == 4] == [(4, 1, 60), (4, 2, 60), (4, 3, 60)]


def test_a_split_is_described_with_its_pieces() -> None:
    migration = migrate(np.repeat([1, 2], [200, 100]), np.repeat([0, 1, 2], [120, 80, 100]), [1, 2])
    assert changes(migration) == {"splits": [((1,), (1, 3))]}
    assert (migration.born_segment_ids, migration.retired_segment_ids) == ((3,), ())
    assert "Segment 1 split into 1 and 3." in migration_sentences(migration)


def test_a_merge_is_described_with_its_pieces() -> None:
    migration = migrate(np.repeat([1, 2, 3], [120, 80, 100]), np.repeat([0, 1], [200, 100]), [1, 2, 3])
    assert changes(migration) == {"merges": [((1, 2), (1,))]}
    assert (migration.born_segment_ids, migration.retired_segment_ids) == ((), (2,))
    assert "Segments 1 and 2 merged into 1." in migration_sentences(migration)


@pytest.mark.parametrize("to", [1, 2])
def test_a_few_who_leave_are_no_split(to: int) -> None:
    """A tenth of segment 1 joins another one, or makes one of its own: many users, and yet no substantial share."""
    now = np.repeat([0, to, 1], [900, 100, 300])
    assert changes(migrate(np.repeat([1, 2], [1000, 300]), now, [1, 2])) == {}


def test_flows_too_small_to_tell_are_summed_up_with_new_users() -> None:
    """30 users come from segment 1 and 40 are new: one flow of 70. The opposite flow of 20 users is left out."""
    previous = np.repeat([1, 1, 2, 2, 0], [300, 30, 300, 20, 40])
    now = np.repeat([0, 1, 1, 0, 1], [300, 30, 300, 20, 40])
    migration = migrate(previous, now, [1, 2])
    assert flows(migration) == [(1, 1, 300), (2, 2, 300), (0, 2, 70)]
    shares = {flow.from_segment_id: flow.share for flow in migration.flows}
    assert shares == pytest.approx({1: 300 / 330, 2: 300 / 320, 0: 70 / 370})


@pytest.mark.parametrize("seed", range(5))
def test_no_flow_is_published_of_a_group_below_the_least_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    previous, now = rng.integers(0, 6, 2_000), rng.integers(0, 8, 2_000)
    now = np.where(rng.random(2_000) < 0.5, previous, now)
    migration = migrate(previous, now.astype(np.intp), [1, 2, 3, 4, 5])
    assert all(flow.user_count >= SMALLEST for flow in migration.flows)
    assert sum(flow.user_count for flow in migration.flows) <= 2_000


def test_pieces_below_the_least_size_make_no_split() -> None:
    previous, now = np.repeat([1, 2], [100, 300]), np.repeat([0, 1, 2], [60, 40, 300])
    assert changes(migrate(previous, now, [1, 2])) == {}
    assert changes(migrate(previous, now, [1, 2], smallest=40)) == {"splits": [((1,), (1, 3))]}


def test_too_few_known_users_are_not_counted() -> None:
    migration = migrate(np.repeat([1, 0], [5, 100]), np.repeat([0, 1], [5, 100]), [1])
    assert migration.user_count == 0
    [sentence] = migration_sentences(migration)
    assert sentence == "Release 1 knows too few of these users to show how segments changed."


BLOBS = np.eye(8, dtype=np.float32)


def points_of(blobs: NDArray[np.intp], centers: NDArray[np.float32] = BLOBS) -> NDArray[np.float32]:
    noise = np.random.default_rng(0).normal(scale=0.1, size=(len(blobs), centers.shape[1]))
    return (centers[blobs] + noise).astype(np.float32)


def fitted(points: NDArray[np.float32], k: int, seed: int) -> NDArray[np.intp]:
    return cluster(points, k, "sklearn", KMeansSettings(seed=seed)).members.clusters


def test_k_means_of_points_that_appear_vanish_split_and_merge_is_described() -> None:
    """Blobs 0 and 1 stay; 2 splits; 3 and 4 merge; 5 vanishes; 6 is new."""
    blobs = np.repeat(np.arange(7), 200)
    before, after = np.flatnonzero(blobs != 6), np.flatnonzero(blobs != 5)
    left = BLOBS.copy()
    left[3] = left[4] = (BLOBS[3] + BLOBS[4]) / np.sqrt(2)
    points = points_of(blobs, left)
    points[(blobs == 2) & (np.arange(len(blobs)) % 2 == 0)] += 0.9 * (BLOBS[7] - BLOBS[2])
    old = np.zeros(len(blobs), np.int64)
    old[before] = 1 + fitted(points_of(blobs)[before], 6, seed=1)
    id_of = {blob: int(np.bincount(old[blobs == blob]).argmax()) for blob in range(6)}
    migration = migrate(old[after], fitted(points[after], 6, seed=2), list(range(1, 7)))
    assert [c.from_segment_ids for c in migration.splits] == [(id_of[2],)]
    assert len(migration.splits[0].to_segment_ids) == 2
    [merge] = migration.merges
    assert merge == Change(from_segment_ids=tuple(sorted((id_of[3], id_of[4]))), to_segment_ids=merge.to_segment_ids)
    assert merge.to_segment_ids[0] in (id_of[3], id_of[4])
    assert len(migration.born_segment_ids) == 2  # the new blob, and one half of what split
    [newcomers] = [flow for flow in migration.flows if flow.from_segment_id == 0]
    assert newcomers.to_segment_id in migration.born_segment_ids
    assert newcomers.user_count == 200
    assert id_of[5] in migration.retired_segment_ids
    assert {id_of[0], id_of[1]} <= {flow.to_segment_id for flow in migration.flows if flow.share == 1.0}
