"""A new release beside the active one, over the same users: the test targets of the run's own log.

Neither encoder has seen what it is asked for: training holds the targets back. Each release reads the histories with
its own vocabulary, and an item that it does not know is a miss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.errors import DamagedRelease, DamagedTraffic
from server.core.features import Features
from server.core.release import Release
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from server.core.repository.traffic import last_traffic, read_traffic
from server.core.segments import next_item_part, segment_part
from training.config import PublishSettings
from training.data.sequences import HeldOut, sample_targets
from training.errors import PublishError
from training.evaluation.compare import SIGNIFICANT, PairedDifference, paired_difference
from training.evaluation.evaluate import protocols
from training.kmeans.fit import assign
from training.metrics import ndcg_each
from training.model.onnx_inference import embed
from training.publish.gates import Gate, limits_of
from training.publish.model_checks import embedded
from training.publish.sandbox import confined
from training.repository import newest_release
from training.runs import Progress, Run, no_progress
from training.segments.placement import histories_of, seen_item_rows

_SCORES_AT_ONCE = 4_000_000
_MISSED = 1 << 40
"""The rank of a target that a release does not know."""

_NOBODY = "nobody: no user of the log has enough events to test on"


@dataclass(frozen=True, slots=True)
class GateTargets:
    """Events before the targets, in the order of users and time, and the item that each user (T) took next."""

    events: pl.DataFrame
    targets: list[str]


@dataclass(frozen=True, slots=True)
class _Said:
    """What a release says: the rank of each target from 0, (T,), and the segment of each user, (T,); 0 for none."""

    ranks: NDArray[np.int64]
    segment_ids: NDArray[np.int64]


def active_release(repository: Path) -> Release | None:
    """The release that answers now: what the traffic names, else the newest good one; None where there is none."""
    try:
        stable = read_traffic(repository).stable
    except DamagedTraffic:  # servers go on with what was in force
        stable = last_traffic(repository).stable
    if stable:
        try:
            return read_release(repository / MODEL_NAME / str(stable))
        except DamagedRelease:  # then another one answers
            pass
    return newest_release(repository)


def compared_with_active(
    run: Run,
    new: tuple[Release, Path],
    active: tuple[Release, Path],
    settings: PublishSettings,
    progress: Progress = no_progress,
) -> list[Gate]:
    """Quality and segments of the new release beside those of the active one; each with its directory."""
    asked = gate_targets(run.require("prepare"), new[0], settings.compared_users)
    bounds = {"max_moved_share": settings.max_moved_share, "max_retired_share": settings.max_retired_share}
    if asked is None:
        loss = Gate("quality", _NOBODY, f"≥ {1 - settings.max_loss:.0%} of release {active[0].number}'s")
        return [loss, Gate("segments", _NOBODY, f"≤ {bounds['max_moved_share']:.0%} moved")]
    progress("comparing with the active release", 0, 2)
    before = _said(active[0], asked, partial(embed, active[1] / "model.onnx"))
    progress("comparing with the active release", 1, 2)
    after = _said(new[0], asked, partial(_embed_apart, new[1] / "model.onnx", settings))
    progress("comparing with the active release", 2, 2)
    difference = paired_difference(ndcg_each(after.ranks, 10), ndcg_each(before.ranks, 10))
    return [
        quality_gate(difference, len(asked.targets), active[0].number, settings.max_loss),
        *segment_gates(before.segment_ids, after.segment_ids, new[0], active[0].number, settings),
    ]


def quality_gate(found: PairedDifference, users: int, active: int, max_loss: float) -> Gate:
    """NDCG@10 must not be lower by more than `max_loss` of the active release's, unless that is chance."""
    before = found.value - found.difference
    loss = -found.difference / before if before > 0 else 0.0
    figures = {"ndcg@10": found.value, "active_ndcg@10": before, "p": found.p}
    measured = f"NDCG@10 {found.value:.4f}, release {active} {before:.4f} (p {found.p:.3f}), {users:,} users"
    failed = loss > max_loss and found.p < SIGNIFICANT
    problem = (
        f"NDCG@10 is {found.value:.4f} where release {active} has {before:.4f} for the same {users:,} users: lower by "
        f"{loss:.1%}, which is no chance (p {found.p:.3f}), and --max-loss allows {max_loss:.1%}."
    )
    asked = f"lower by ≤ {max_loss:.0%}, or by chance"
    return Gate("quality", measured, asked, problem if failed else "", can_be_forced=True, figures=figures)


def segment_gates(
    before: NDArray[np.int64], after: NDArray[np.int64], new: Release, active: int, settings: PublishSettings
) -> list[Gate]:
    """Shares of users (T,) who are in another segment than now, and whose segment is no more."""
    both = (before > 0) & (after > 0)
    if not both.any():
        return [Gate("segments", "nobody whom both releases know", "–")]
    ids = [profile.segment_id for profile in new.segments]
    moved = float((before != after)[both].mean())
    retired = float((~np.isin(before, ids))[both].mean())
    whom = f"of {int(both.sum()):,} users"
    return [
        _share_gate(
            "moved", moved, settings.max_moved_share, f"{whom} are in another segment than in release {active}"
        ),
        _share_gate("retired", retired, settings.max_retired_share, f"{whom} were in segments that are no more"),
    ]


def _share_gate(name: str, share: float, most: float, what: str) -> Gate:
    problem = f"{share:.1%} {what}, and [publish] max_{name}_share allows {most:.1%}."
    measured, figures = f"{share:.1%} {what}", {f"{name}_share": share}
    return Gate(f"segments {name}", measured, f"≤ {most:.0%}", problem if share > most else "", True, figures)


def gate_targets(prepared: Path, release: Release, most: int) -> GateTargets | None:
    """Test targets of a run's log as the release serves it, at most so many; None where nobody can be tested on."""
    exclude_seen = release.preprocessing.exclude_seen
    known = protocols(prepared, release.preprocessing, release.manifest.item_count)
    protocol = next((one for one in known if one.exclude_seen == exclude_seen), None)
    if protocol is None:
        return None
    events = pl.read_parquet(prepared / "events.parquet")
    held = sample_targets(protocol.held, most, seed=0)
    ends = _places(events, exclude_seen)[held.ends]
    return _asked(events, held, ends)


def _places(events: pl.DataFrame, first_only: bool) -> NDArray[np.intp]:
    """Where the events of the protocol's reading stand in the log: all, or the first of each user and item."""
    if not first_only:
        return np.arange(len(events))
    first = events.select(pl.struct("user_id", "item_id").is_first_distinct()).to_series()
    return np.flatnonzero(first.to_numpy())


def _asked(events: pl.DataFrame, held: HeldOut, ends: NDArray[np.intp]) -> GateTargets:
    rows = (events["user_id"].rle_id()).to_numpy()
    end_of = np.zeros(int(rows[-1]) + 1, np.int64)
    end_of[held.rows] = ends
    before = pl.Series(np.arange(len(events)) < end_of[rows])
    text = events.with_columns(pl.col("user_id", "item_id", "action").cast(pl.String))
    return GateTargets(text.filter(before), text["item_id"].gather(ends).to_list())


def _said(release: Release, asked: GateTargets, embedding: Callable[[Features, int], NDArray[np.float32]]) -> _Said:
    histories = histories_of(asked.events.lazy(), release)
    embeddings = embedding(histories.features, release.preprocessing.max_length)
    dim, known = release.manifest.embedding_dim, histories.features.lengths > 0
    seen = seen_item_rows(asked.events, release) if release.preprocessing.exclude_seen else None
    targets = np.array([release.vocabulary.get(item_id, 0) - 1 for item_id in asked.targets], np.int64)
    ranks = _ranks(release, next_item_part(embeddings, dim), known, targets, seen)
    ids = np.array([profile.segment_id for profile in release.segments], np.int64)
    nearest = assign(segment_part(embeddings, dim), release.centroids).first
    return _Said(ranks, np.where(known, ids[nearest], 0))


def _embed_apart(model: Path, settings: PublishSettings, features: Features, max_length: int) -> NDArray[np.float32]:
    """User embeddings (B, D) of an encoder that is not trusted yet. Raises PublishError."""
    try:
        found = confined(limits_of(model, settings), embedded, model, features, max_length)
    except PublishError as error:
        raise PublishError(
            f"model.onnx does not embed the users that the release is compared over: {error}."
        ) from error
    return found["users"].astype(np.float32)


def _ranks(
    release: Release,
    users: NDArray[np.float32],
    known: NDArray[np.bool_],
    targets: NDArray[np.int64],
    seen: list[NDArray[np.intp]] | None,
) -> NDArray[np.int64]:
    """Rank of each target (T,) among all items; whom the release knows nothing of gets popular items, as in serving."""
    step = max(1, _SCORES_AT_ONCE // len(release.item_ids))
    ranks = np.full(len(targets), _MISSED, np.int64)
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        scores = np.where(known[part, None], users[part] @ release.item_embeddings.T, release.popularity)
        if seen is not None:
            for row, gone in enumerate(seen[part]):
                scores[row, gone] = -np.inf
        ranks[part] = _ranks_in(scores, targets[part])
    return ranks


def _ranks_in(scores: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """As `training.metrics.target_ranks`; a target of -1 is missed, and so is one that is left out (score -inf)."""
    rows = np.arange(scores.shape[1])
    own = np.take_along_axis(scores, np.maximum(targets, 0)[:, None], 1)
    before = ((scores > own) | ((scores == own) & (rows < targets[:, None]))).sum(1)
    return np.where((targets >= 0) & (own[:, 0] > -np.inf), before, _MISSED)
