"""What became of the segments of the release before: who went where, and what began, ended, split and merged.

Everything is counted over users known to both releases. No group of fewer users than the smallest segment is told.
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

SUBSTANTIAL = 0.2
"""A split has pieces, and a merge has parts, of at least this share of the whole."""

MOSTLY = 0.5
"""A piece is made of what split, and a part has gone into what merged, by at least this share of its users."""

ELSEWHERE = 0
"""Where users come from who are new, or too few to be told apart."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many users (P, K) were in segment `old_ids[p]` (P,) before and are in `new_ids[k]` (K,) now.

    `sizes` (K,) counts all who are there now, also those not known before.
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
        """Count the users of today, who are in `clusters` (U,); those at `rows` (N,) had `previous_ids` (N,) before."""
        old_ids = tuple(sorted(known_ids))
        counts = np.zeros((len(old_ids), len(new_ids)), np.int64)
        np.add.at(counts, (np.searchsorted(old_ids, previous_ids), clusters[rows]), 1)
        return cls(old_ids, tuple(new_ids), counts, np.bincount(clusters, minlength=len(new_ids)))

    @property
    def before(self) -> NDArray[np.int64]:
        """Users of each segment before, (P,)."""
        before: NDArray[np.int64] = self.counts.sum(1)
        return before


def migration_of(previous_release: int, overlap: Overlap, matching: Matching, min_segment_size: int) -> Migration:
    """Everything that is told of the change."""
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


def unchanged(release: Release) -> Migration:
    """That of a release whose segments are those of `release`: everybody stays."""
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

    Smaller ones are summed up by the segment that they lead to, together with the users who are new, as coming from
    `ELSEWHERE`; and left out where even that is too small.
    """
    flows = []
    for column, to_id in enumerate(overlap.new_ids):
        told = np.flatnonzero(overlap.counts[:, column] >= max(min_segment_size, 1))
        for row in told:
            count = int(overlap.counts[row, column])
            flows.append(_flow(overlap.old_ids[row], to_id, count, int(overlap.before[row])))
        size = int(overlap.sizes[column])
        rest = size - int(overlap.counts[told, column].sum())
        if rest >= max(min_segment_size, 1):
            flows.append(_flow(ELSEWHERE, to_id, rest, size))
    return tuple(sorted(flows, key=lambda flow: (-flow.user_count, flow.from_segment_id, flow.to_segment_id)))


def splits_of(overlap: Overlap, min_segment_size: int) -> tuple[Change, ...]:
    """Segments that fell into several.

    Each piece took a `SUBSTANTIAL` share of the segment's users, at least `min_segment_size`, and is `MOSTLY` made of
    them.
    """
    return tuple(
        Change(from_segment_ids=(old_id,), to_segment_ids=pieces)
        for old_id, pieces in _broken(overlap.counts, overlap.old_ids, overlap.new_ids, min_segment_size)
    )


def merges_of(overlap: Overlap, min_segment_size: int) -> tuple[Change, ...]:
    """Segments that came together, the mirror image of a split.

    Each part makes up a `SUBSTANTIAL` share of the new segment's users, at least `min_segment_size`, and `MOSTLY` went
    there.
    """
    return tuple(
        Change(from_segment_ids=parts, to_segment_ids=(new_id,))
        for new_id, parts in _broken(overlap.counts.T, overlap.new_ids, overlap.old_ids, min_segment_size)
    )


def _flow(from_id: int, to_id: int, count: int, of: int) -> Flow:
    return Flow(from_segment_id=from_id, to_segment_id=to_id, user_count=count, share=count / of)


def _broken(
    counts: NDArray[np.int64], wholes: Sequence[int], pieces: Sequence[int], smallest: int
) -> list[tuple[int, tuple[int, ...]]]:
    """Wholes (rows of `counts`) that are made of at least two pieces (columns), with these."""
    of_whole = counts >= SUBSTANTIAL * counts.sum(1, keepdims=True)
    of_piece = counts >= MOSTLY * counts.sum(0, keepdims=True)
    made = of_whole & of_piece & (counts >= max(smallest, 1))
    found = []
    for whole, row in zip(wholes, made, strict=True):
        parts = tuple(sorted(pieces[place] for place in np.flatnonzero(row).tolist()))
        if len(parts) > 1:
            found.append((whole, parts))
    return found


def in_sentences(migration: Migration) -> list[str]:
    """What became of the segments, for people."""
    if not migration.user_count:
        return [f"Too few users here were known to release {migration.previous_release} to say who went where."]
    stayed = sum(flow.user_count for flow in migration.flows if flow.from_segment_id == flow.to_segment_id)
    told = [
        f"Of {migration.user_count:,} users known to release {migration.previous_release}, "
        f"{stayed / migration.user_count:.0%} are in the same segment as then."
    ]
    for change in migration.splits:
        told.append(f"Segment {change.from_segment_ids[0]} split into {natural_list([*change.to_segment_ids])}.")
    for change in migration.merges:
        told.append(f"Segments {natural_list([*change.from_segment_ids])} merged into {change.to_segment_ids[0]}.")
    told += [f"Segment {born} is new." for born in migration.born_segment_ids]
    told += [f"Segment {gone} is no more; its id is not used again." for gone in migration.retired_segment_ids]
    return told


def write_migration(directory: Path, migration: Migration | None) -> None:
    """Write it into the segment stage's directory; None where there was no release before."""
    if migration is None:
        (directory / MIGRATION).unlink(missing_ok=True)
    else:
        write_atomically(directory / MIGRATION, migration.model_dump_json(indent=1) + "\n")


def read_migration(directory: Path) -> Migration | None:
    """Read it back; None where there was no release before."""
    path = directory / MIGRATION
    return Migration.model_validate_json(path.read_bytes()) if path.is_file() else None
