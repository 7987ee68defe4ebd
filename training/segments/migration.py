"""The migration from the previous release's segments: flows of users, and new, retired, split and merged segments.

All counts are over users known to both releases. A group with fewer than `min_segment_size` users is not published.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from humanize import natural_list
from numpy.typing import NDArray

from server.core.profiles import Change, Flow, Migration
from server.core.release import MIGRATION, Release
from training.runs import write_atomically
from training.segments.matching import Matching

PIECE_SHARE = 0.2
"""Each piece of a split or merged segment holds at least this share of its users."""

MAJORITY_SHARE = 0.5
"""At least this share of a piece's users come from the split segment, or went into the merged segment."""

OTHER_USERS = 0
"""Segment id 0 in a flow: the origin of users who are new, or whose flow is too small to publish."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """`counts[p, k]` is the number of users who were in segment `old_ids[p]` and are in segment `new_ids[k]`, (P, K).

    `sizes` (K,) are the users of each new segment, including users whom the previous release did not know.
    """

    old_ids: tuple[int, ...]
    new_ids: tuple[int, ...]
    counts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        previous_ids: NDArray[np.integer],
        rows: NDArray[np.intp],
        clusters: NDArray[np.intp],
        known_ids: Iterable[int],
        new_ids: Sequence[int],
    ) -> "Overlap":
        """Count users in `clusters` (U,); the users at `rows` (N,) were in the segments `previous_ids` (N,)."""
        old_ids = tuple(sorted(known_ids))
        counts = np.zeros((len(old_ids), len(new_ids)), np.int64)
        np.add.at(counts, (np.searchsorted(old_ids, previous_ids), clusters[rows]), 1)
        return cls(old_ids, tuple(new_ids), counts, np.bincount(clusters, minlength=len(new_ids)))

    @property
    def old_sizes(self) -> NDArray[np.int64]:
        """Users of each old segment, (P,)."""
        sizes: NDArray[np.int64] = self.counts.sum(1)
        return sizes


def migration_of(previous_release: int, overlap: Overlap, matching: Matching, min_segment_size: int) -> Migration:
    """The published description of the migration."""
    known = int(overlap.counts.sum())
    return Migration(
        previous_release=previous_release,
        user_count=known if known >= min_segment_size else 0,
        flows=flows_of(overlap, min_segment_size),
        born_segment_ids=tuple(sorted(matching.born)),
        retired_segment_ids=matching.retired,
        splits=splits_of(overlap, min_segment_size),
        merges=merges_of(overlap, min_segment_size),
    )


def unchanged_migration(release: Release) -> Migration:
    """The migration to a release with the segments of `release`: every user stays."""
    flows = [
        Flow(from_segment_id=p.segment_id, to_segment_id=p.segment_id, user_count=p.user_count, share=1.0)
        for p in release.segments
        if p.user_count
    ]
    return Migration(
        previous_release=release.number,
        user_count=sum(flow.user_count for flow in flows),
        flows=tuple(sorted(flows, key=lambda flow: -flow.user_count)),
    )


def flows_of(overlap: Overlap, min_segment_size: int) -> tuple[Flow, ...]:
    """Flows of at least `min_segment_size` users, the largest first.

    For each new segment, smaller flows and new users are summed as one flow from `OTHER_USERS`; the sum is left out if
    it is below `min_segment_size` too.
    """
    flows = []
    for column, to_id in enumerate(overlap.new_ids):
        large = np.flatnonzero(overlap.counts[:, column] >= max(min_segment_size, 1))
        for row in large:
            count = int(overlap.counts[row, column])
            flows.append(_flow(overlap.old_ids[row], to_id, count, int(overlap.old_sizes[row])))
        size = int(overlap.sizes[column])
        rest = size - int(overlap.counts[large, column].sum())
        if rest >= max(min_segment_size, 1):
            flows.append(_flow(OTHER_USERS, to_id, rest, size))
    return tuple(sorted(flows, key=lambda flow: (-flow.user_count, flow.from_segment_id, flow.to_segment_id)))


def splits_of(overlap: Overlap, min_segment_size: int) -> tuple[Change, ...]:
    """Old segments that split into several new segments, the pieces.

    A piece holds `PIECE_SHARE` of the old segment's users, at least `min_segment_size`, and `MAJORITY_SHARE` of the
    piece's users come from the old segment.
    """
    return tuple(
        Change(from_segment_ids=(old_id,), to_segment_ids=pieces)
        for old_id, pieces in _in_pieces(overlap.counts, overlap.old_ids, overlap.new_ids, min_segment_size)
    )


def merges_of(overlap: Overlap, min_segment_size: int) -> tuple[Change, ...]:
    """Old segments, the pieces, that merged into one new segment: the mirror image of a split.

    A piece holds `PIECE_SHARE` of the new segment's users, at least `min_segment_size`, and `MAJORITY_SHARE` of the
    piece's users went to the new segment.
    """
    return tuple(
        Change(from_segment_ids=pieces, to_segment_ids=(new_id,))
        for new_id, pieces in _in_pieces(overlap.counts.T, overlap.new_ids, overlap.old_ids, min_segment_size)
    )


def _flow(from_id: int, to_id: int, count: int, total: int) -> Flow:
    return Flow(from_segment_id=from_id, to_segment_id=to_id, user_count=count, share=count / total)


def _in_pieces(
    counts: NDArray[np.int64], row_ids: Sequence[int], column_ids: Sequence[int], min_segment_size: int
) -> list[tuple[int, tuple[int, ...]]]:
    """The segments (rows of `counts`) that consist of at least two pieces (columns), each with its pieces."""
    large_in_row = counts >= PIECE_SHARE * counts.sum(1, keepdims=True)
    most_of_column = counts >= MAJORITY_SHARE * counts.sum(0, keepdims=True)
    is_piece = large_in_row & most_of_column & (counts >= max(min_segment_size, 1))
    segments = []
    for row_id, row in zip(row_ids, is_piece, strict=True):
        pieces = tuple(sorted(column_ids[column] for column in np.flatnonzero(row).tolist()))
        if len(pieces) > 1:
            segments.append((row_id, pieces))
    return segments


def migration_sentences(migration: Migration) -> list[str]:
    """The migration as sentences for people."""
    if not migration.user_count:
        return [f"Release {migration.previous_release} knows too few of these users to show how segments changed."]
    stayed = sum(flow.user_count for flow in migration.flows if flow.from_segment_id == flow.to_segment_id)
    sentences = [
        f"Of {migration.user_count:,} users known to release {migration.previous_release}, "
        f"{stayed / migration.user_count:.0%} are still in the same segment."
    ]
    for change in migration.splits:
        sentences.append(f"Segment {change.from_segment_ids[0]} split into {natural_list([*change.to_segment_ids])}.")
    for change in migration.merges:
        sentences.append(f"Segments {natural_list([*change.from_segment_ids])} merged into {change.to_segment_ids[0]}.")
    sentences += [f"Segment {new_id} is new." for new_id in migration.born_segment_ids]
    sentences += [f"Segment {old_id} is retired; its id is not used again." for old_id in migration.retired_segment_ids]
    return sentences


def write_migration(directory: Path, migration: Migration | None) -> None:
    """Write `migration.json` to a directory; delete an old file if `migration` is None (no previous release)."""
    if migration is None:
        (directory / MIGRATION).unlink(missing_ok=True)
    else:
        write_atomically(directory / MIGRATION, migration.model_dump_json(indent=1) + "\n")


def read_migration(directory: Path) -> Migration | None:
    """Read `migration.json` of a directory; None without the file."""
    path = directory / MIGRATION
    return Migration.model_validate_json(path.read_bytes()) if path.is_file() else None
