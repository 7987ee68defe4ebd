"""Gates that compare a new release with the active release on the test targets of the new run's log.

The new encoder was trained without these targets. Each release reads the histories with its own vocabulary; a target
that a release does not know counts as a miss.
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
from training.publish.model_checks import embed_users
from training.publish.sandbox import run_in_sandbox
from training.repository import newest_release, read_trusted
from training.runs import Progress, Run, no_progress
from training.segments.placement import histories_of, seen_item_rows

_SCORES_AT_ONCE = 4_000_000
_MISSED = 1 << 40
"""The rank of a target that a release does not know."""

_QUALITY = "quality of the encoder"
_NO_TEST_USERS = "no users: none in the log has enough events for a test"


@dataclass(frozen=True, slots=True)
class GateTargets:
    """`events` before the targets, sorted by user and time; `targets` (T,): the next item of each user."""

    events: pl.DataFrame
    targets: list[str]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Answers of one release: `ranks` (T,) of the targets, from 0; `segment_ids` (T,) of the users, 0 for unknown."""

    ranks: NDArray[np.int64]
    segment_ids: NDArray[np.int64]


def active_release(repository: Path) -> Release | None:
    """The stable release of the traffic, else the newest good release that does not stand by; None without any."""
    try:
        stable = read_traffic(repository).stable
    except DamagedTraffic:  # servers keep following the last valid traffic
        stable = last_traffic(repository).stable
    if stable:
        try:
            return read_trusted(repository / MODEL_NAME / str(stable))
        except DamagedRelease:  # the newest good release answers instead
            pass
    return newest_release(repository, answering=True)


def compared_with_active(
    run: Run,
    new: tuple[Release, Path],
    active: tuple[Release, Path],
    settings: PublishSettings,
    progress: Progress = no_progress,
) -> list[Gate]:
    """The gates `quality of the encoder` and `segments`. `new` and `active` are a release and its directory."""
    test = gate_targets(run.require("prepare"), new[0], settings.compared_users)
    if test is None:
        loss = Gate(_QUALITY, _NO_TEST_USERS, f"≥ {1 - settings.max_loss:.0%} of release {active[0].number}'s")
        return [loss, Gate("segments", _NO_TEST_USERS, f"≤ {settings.max_moved_share:.0%} moved")]
    progress("comparing with the active release", 0, 2)
    before = _outcome(active[0], test, partial(embed, active[1] / "model.onnx"))
    progress("comparing with the active release", 1, 2)
    after = _outcome(new[0], test, partial(_embed_in_sandbox, new[1] / "model.onnx", settings))
    progress("comparing with the active release", 2, 2)
    difference = paired_difference(ndcg_each(after.ranks, 10), ndcg_each(before.ranks, 10))
    return [
        quality_gate(difference, len(test.targets), active[0].number, settings.max_loss),
        *segment_gates(before.segment_ids, after.segment_ids, new[0], active[0].number, settings),
    ]


def quality_gate(ndcg: PairedDifference, users: int, active: int, max_loss: float) -> Gate:
    """Fails when the encoder alone has a significantly lower NDCG@10 than the active one, by more than `max_loss`.

    What is served is judged beside rules, see `rule_gate`.
    """
    before = ndcg.value - ndcg.difference
    loss = -ndcg.difference / before if before > 0 else 0.0
    figures = {"ndcg@10": ndcg.value, "active_ndcg@10": before, "p": ndcg.p}
    figure = f"NDCG@10 of the encoder alone {ndcg.value:.4f}, release {active} {before:.4f}"
    measured = f"{figure} (p {ndcg.p:.3f}), {users:,} users"
    failed = loss > max_loss and ndcg.p < SIGNIFICANT
    problem = (
        f"NDCG@10 of the encoder alone is {ndcg.value:.4f}, and {before:.4f} for release {active} on the same "
        f"{users:,} users: lower by {loss:.1%}, a significant difference (p {ndcg.p:.3f}), and --max-loss allows "
        f"{max_loss:.1%}."
    )
    limit = f"lower by ≤ {max_loss:.0%}, or not significant"
    return Gate(_QUALITY, measured, limit, problem if failed else "", can_be_forced=True, figures=figures)


def segment_gates(
    before: NDArray[np.int64], after: NDArray[np.int64], new: Release, active: int, settings: PublishSettings
) -> list[Gate]:
    """Limits the shares of users (T,) whose segment changes, and whose segment no longer exists."""
    both = (before > 0) & (after > 0)
    if not both.any():
        return [Gate("segments", "no users that both releases know", "–")]
    ids = [profile.segment_id for profile in new.segments]
    moved = float((before != after)[both].mean())
    retired = float((~np.isin(before, ids))[both].mean())
    users = f"of {int(both.sum()):,} users"
    moved_text = f"{users} are in another segment than in release {active}"
    retired_text = f"{users} were in segments that no longer exist"
    return [
        _share_gate("moved", moved, settings.max_moved_share, moved_text),
        _share_gate("retired", retired, settings.max_retired_share, retired_text),
    ]


def _share_gate(name: str, share: float, limit: float, text: str) -> Gate:
    problem = f"{share:.1%} {text}, and [publish] max_{name}_share allows {limit:.1%}."
    measured, figures = f"{share:.1%} {text}", {f"{name}_share": share}
    return Gate(f"segments {name}", measured, f"≤ {limit:.0%}", problem if share > limit else "", True, figures)


def gate_targets(prepared: Path, release: Release, max_users: int) -> GateTargets | None:
    """Test targets of at most `max_users` users, by the protocol under which the release serves.

    None when no user has enough events for a test.
    """
    exclude_seen = release.preprocessing.exclude_seen
    candidates = protocols(prepared, release.preprocessing, release.manifest.item_count)
    protocol = next((protocol for protocol in candidates if protocol.exclude_seen == exclude_seen), None)
    if protocol is None:
        return None
    events = pl.read_parquet(prepared / "events.parquet")
    held = sample_targets(protocol.held, max_users, seed=0)
    first_after = _protocol_rows(events, exclude_seen)[held.ends]
    item_ids = pl.read_parquet(prepared / "items.parquet", columns=["item_id"])["item_id"]
    return _targets_of(events, held, first_after, item_ids.gather(held.targets.astype(np.int64) - 1))


def _protocol_rows(events: pl.DataFrame, first_only: bool) -> NDArray[np.intp]:
    """Rows of the log that the protocol reads: all, or the first event of each user and item."""
    if not first_only:
        return np.arange(len(events))
    first = events.select(pl.struct("user_id", "item_id").is_first_distinct()).to_series()
    return np.flatnonzero(first.to_numpy())


def _targets_of(events: pl.DataFrame, held: HeldOut, first_after: NDArray[np.intp], targets: pl.Series) -> GateTargets:
    """The ids of `targets` (T,), with each user's events before row `first_after` (T,); other users have no events."""
    user_index = (events["user_id"].rle_id()).to_numpy()
    target_of_user = np.zeros(int(user_index[-1]) + 1, np.int64)
    target_of_user[held.rows] = first_after
    is_before = pl.Series(np.arange(len(events)) < target_of_user[user_index])
    text = events.with_columns(pl.col("user_id", "item_id", "action").cast(pl.String))
    return GateTargets(text.filter(is_before), targets.cast(pl.String).to_list())


def _outcome(
    release: Release, test: GateTargets, embedding: Callable[[Features, int], NDArray[np.float32]]
) -> _Outcome:
    """The release's ranks and segments; `embedding` maps features and the longest history to embeddings (T, D)."""
    histories = histories_of(test.events.lazy(), release)
    embeddings = embedding(histories.features, release.preprocessing.max_length)
    dim, known = release.manifest.embedding_dim, histories.features.lengths > 0
    seen = seen_item_rows(test.events, release) if release.preprocessing.exclude_seen else None
    targets = np.array([release.vocabulary.get(item_id, 0) - 1 for item_id in test.targets], np.int64)
    ranks = _ranks(release, next_item_part(embeddings, dim), known, targets, seen)
    ids = np.array([profile.segment_id for profile in release.segments], np.int64)
    nearest = assign(segment_part(embeddings, dim), release.centroids).first
    return _Outcome(ranks, np.where(known, ids[nearest], 0))


def _embed_in_sandbox(
    model: Path, settings: PublishSettings, features: Features, max_length: int
) -> NDArray[np.float32]:
    """User embeddings (B, D) of an encoder that is not trusted yet. Raises PublishError."""
    try:
        arrays = run_in_sandbox(limits_of(model, settings), embed_users, model, features, max_length)
    except PublishError as error:
        raise PublishError(f"model.onnx cannot embed the test users of the quality gate: {error}.") from error
    return arrays["users"].astype(np.float32)


def _ranks(
    release: Release,
    users: NDArray[np.float32],
    known: NDArray[np.bool_],
    targets: NDArray[np.int64],
    seen: list[NDArray[np.intp]] | None,
) -> NDArray[np.int64]:
    """Rank of each target (T,) among all items. Users (T, D) that are not `known` get popular items, as in serving."""
    step = max(1, _SCORES_AT_ONCE // len(release.item_ids))
    ranks = np.full(len(targets), _MISSED, np.int64)
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        scores = np.where(known[part, None], users[part] @ release.item_embeddings.T, release.popularity)  # (B, V)
        if seen is not None:
            for row, seen_items in enumerate(seen[part]):
                scores[row, seen_items] = -np.inf
        ranks[part] = _ranks_in(scores, targets[part])
    return ranks


def _ranks_in(scores: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Like `training.metrics.target_ranks`, but unknown targets (-1) and excluded targets (score -inf) are missed."""
    rows = np.arange(scores.shape[1])
    target_scores = np.take_along_axis(scores, np.maximum(targets, 0)[:, None], 1)
    # Items with a larger score come first; equal scores are ordered by row.
    before = ((scores > target_scores) | ((scores == target_scores) & (rows < targets[:, None]))).sum(1)
    return np.where((targets >= 0) & (target_scores[:, 0] > -np.inf), before, _MISSED)
