"""The evaluate stage: ranks all items for each user with a test target, by the encoder and by baselines.

The split decides the protocols. Leave-one-out has two: `leave-one-out`, as in published figures, counts only the first
event of each user and item, and does not rank the items of the history; `as served`, for logs with repeated items,
counts all events and ranks all items. A split by time has one, `time split`: the target is the first event of a user in
the test period, and items of the history are ranked if the release ranks them. A split by visit has `next visit`, whose
targets are all items of a user's last visit (`training.evaluation.visits`).
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from server.core.features import Features
from server.core.figures import AS_SERVED, ENCODER, LEAVE_ONE_OUT, NEXT_VISIT, TIME_SPLIT
from server.core.preprocessing import Preprocessing
from server.core.repository.layout import read_preprocessing
from training.data.sequences import (
    EventLog,
    HeldOut,
    held_out,
    in_training,
    one_a_user,
    period_starts,
    positive_actions,
    read_first_events,
    read_log,
    read_sequences,
    sample_targets,
    select_targets,
)
from training.data.split import read_split
from training.errors import RunError
from training.evaluation.baselines import (
    item_knn_scorer,
    known_events,
    popularity_counts,
    popularity_scorer,
    segment_scorer,
)
from training.evaluation.results import METRICS, RANKS, TREND, EvaluateResult, Result, UserSlice
from training.evaluation.visits import USERS_MAX, VALIDATION_USERS, Evaluation, Visitors, evaluate_visits
from training.kmeans.engines import choose_engine
from training.kmeans.settings import KMeansSettings, fixed_k
from training.metrics import (
    LIST_LENGTH,
    bootstrap_interval,
    coverage,
    ndcg_each,
    novelty,
    ranking_metrics,
    target_ranks,
)
from training.model.encoder import Encoder
from training.model.torch_inference import Scorer, embed_histories, embed_users, leave_out_seen
from training.model.user_encoder import UserEncoder
from training.model.weights import load_encoder
from training.ranking.hybrid import TARGET_USERS, HybridTuner
from training.ranking.served import SERVED_NDCG
from training.ranking.trend import Demand, choose_trend, target_times
from training.ranking.variants import groups_of, leave_out_variants
from training.runs import Progress, Run, no_progress, write_atomically

RECENT_POPULARITY = "popularity, lately"
"""The method that gives all users the items in demand at the target's time, by the half-life of the trend."""

NEW_ITEMS = "new items"
"""The slice of targets whose items have no training event."""

_SCORES_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Protocol:
    """The targets `held` of one reading of the log, and whether items of the history are left out of the ranking."""

    name: str
    log: EventLog
    held: HeldOut
    exclude_seen: bool
    training_counts: NDArray[np.int64]
    """The number of training events of each item, (V,)."""

    groups: NDArray[np.int32] | None = None
    """The groups of variants (V,), of which the best item alone is ranked, as a server does."""

    def slices(self) -> dict[str, NDArray[np.bool_]]:
        """Masks (T,) of the targets in each slice: thirds of the users by number of events, and new items."""
        events = self.held.ends - self.log.features.starts[self.held.rows]
        low, high = (int(bound) for bound in np.quantile(events, (1 / 3, 2 / 3), method="lower"))
        masks = {
            f"few (≤ {low})": events <= low,
            f"some (≤ {high})": (events > low) & (events <= high),
            f"many (> {high})": events > high,
        }
        return masks | {NEW_ITEMS: self.training_counts[self.held.targets - 1] == 0}


def evaluate(run: Run, *, progress: Progress = no_progress) -> EvaluateResult:
    """Rank the test targets by the encoder and by baselines. Raises RunError for a log without test targets."""
    trained = run.require("train")
    prepared = run.require("prepare")
    preprocessing = read_preprocessing(prepared)
    with run.stage("evaluate") as stage:
        encoder = load_encoder(trained)
        items = pl.read_parquet(prepared / "items.parquet")
        item_ids, groups = items["item_id"], groups_of(items)
        found_protocols = protocols(prepared, preprocessing, encoder.shape.item_count)
        run_protocols = [replace(protocol, groups=groups) for protocol in found_protocols]
        if not run_protocols:
            raise RunError(_no_targets_message(prepared))
        if run_protocols[0].name == NEXT_VISIT:
            found = _by_visit(run, encoder, run_protocols[0], preprocessing, item_ids, progress)
        else:
            found = _by_item(run, encoder, run_protocols, preprocessing, item_ids, progress)
        found.ranks.write_parquet(stage.directory / RANKS)
        found.ndcg.write_parquet(stage.directory / SERVED_NDCG)
        content = {"results": [asdict(result) for result in found.results], "notes": found.notes}
        write_atomically(stage.directory / METRICS, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        for result in found.results:
            stage.quality += result.quality
    return EvaluateResult(stage.directory, found.results, found.notes)


def _by_item(
    run: Run,
    encoder: Encoder,
    run_protocols: list[Protocol],
    preprocessing: Preprocessing,
    item_ids: pl.Series,
    progress: Progress,
) -> Evaluation:
    """The results of protocols with one target a user."""
    results: list[Result] = []
    ranks: list[pl.DataFrame] = []
    notes = _notes(run_protocols)
    ndcg: dict[str, pl.Series] = {}
    for protocol in run_protocols:
        users = protocol.log.users.gather(protocol.held.rows)
        is_served = protocol.exclude_seen == preprocessing.exclude_seen
        for method, scorer in _scorers(run, encoder, protocol, preprocessing, notes):
            progress(f"{protocol.name}: {method}", len(results), 8 * len(run_protocols))
            target_ranking, top_items = rank_targets(scorer, protocol)
            results.append(measure(method, protocol, target_ranking, top_items))
            if is_served:
                ndcg |= {"user_id": users, method: pl.Series(ndcg_each(target_ranking, 10), dtype=pl.Float32)}
            if method == ENCODER:
                targets = item_ids.gather(protocol.held.targets - 1)
                columns = {"user_id": users, "item_id": targets, "rank": target_ranking}
                ranks.append(pl.DataFrame({"protocol": [protocol.name] * len(users), **columns}))
    return Evaluation(tuple(results), pl.concat(ranks), pl.DataFrame(ndcg), tuple(notes))


def _by_visit(
    run: Run,
    encoder: Encoder,
    protocol: Protocol,
    preprocessing: Preprocessing,
    item_ids: pl.Series,
    progress: Progress,
) -> Evaluation:
    """The results of the next visit."""
    log, groups, item_count = protocol.log, protocol.groups, encoder.shape.item_count
    visitors = Visitors.of(log, 1, preprocessing, item_count, USERS_MAX, groups)
    validation = Visitors.of(log, 2, preprocessing, item_count, VALIDATION_USERS, groups)
    tuner = _tuner(run, encoder, log, preprocessing, len(visitors.first))
    return evaluate_visits(visitors, validation, tuner, item_ids, {}, progress)


def protocols(prepared: Path, preprocessing: Preprocessing, item_count: int) -> Iterator[Protocol]:
    """The protocols of the run's split that have at least one target.

    For a split by visit this is one item of each last visit, drawn at random, for those who compare encoders.
    """
    positive = positive_actions(preprocessing)
    if read_split(prepared).by_time:
        log = read_sequences(prepared, preprocessing)
        yield from _protocol(TIME_SPLIT, log, held_out(log, 1, positive), preprocessing.exclude_seen, item_count)
        return
    if read_split(prepared).by_visit:
        log = read_sequences(prepared, preprocessing)
        held = one_a_user(held_out(log, 1, positive), seed=0)
        yield from _protocol(NEXT_VISIT, log, held, preprocessing.exclude_seen, item_count)
        return
    first = read_first_events(prepared, preprocessing)
    yield from _protocol(LEAVE_ONE_OUT, first, held_out(first, 1), True, item_count)
    if not preprocessing.exclude_seen:
        log = read_log(prepared, preprocessing)
        yield from _protocol(AS_SERVED, log, held_out(log, 1, positive), False, item_count)


def _protocol(name: str, log: EventLog, held: HeldOut, exclude_seen: bool, item_count: int) -> tuple[Protocol, ...]:
    """One protocol, or none without targets."""
    if not len(held.rows):
        return ()
    counts = np.bincount(log.features.item_index[in_training(log)] - 1, minlength=item_count)
    return (Protocol(name, log, held, exclude_seen, counts),)


def _no_targets_message(prepared: Path) -> str:
    if read_split(prepared).by_time:
        return "There are no test targets: no user has events both before and in the test period of [split]."
    if read_split(prepared).by_visit:
        return "There are no test targets: no user has two visits."
    return "There are no test targets: no user has the five events that evaluation needs."


def _notes(run_protocols: list[Protocol]) -> list[str]:
    """A note on the split for each protocol with a split by time."""
    notes = []
    for protocol in run_protocols:
        log = protocol.log
        if log.split.by_time:
            starts = period_starts(log, 1)
            new = (starts == log.features.starts) & (log.features.lengths > 0)
            notes.append(f"{log.split.describe()}; users without earlier events, not evaluated: {int(new.sum()):,}")
    return notes


def _scorers(
    run: Run, encoder: Encoder, protocol: Protocol, preprocessing: Preprocessing, notes: list[str]
) -> Iterator[tuple[str, Scorer]]:
    """Each method by name, with its scorer; appends notes on the methods to `notes`."""
    log, held, item_count = protocol.log, protocol.held, encoder.shape.item_count
    personal = encoder_scorer(encoder, log, held)
    yield ENCODER, personal
    validation = sample_targets(held_out(log, 2, positive_actions(preprocessing)), TARGET_USERS, 0)
    validation_scorer = encoder_scorer(encoder, log, validation)
    trend = choose_trend(
        log, validation, validation_scorer, preprocessing, item_count, exclude_seen=protocol.exclude_seen
    )
    if trend:
        when = "the start of the test period" if log.split.by_time else "each target's day, as for a nightly release"
        words = trend.describe()
        notes.append(f"{protocol.name}: trend and {RECENT_POPULARITY}: {words}, from the events before {when}")
        demand, times = Demand(log, 1, preprocessing, item_count), target_times(log, held, 1)
        trend_scores, weight = demand.scores_by_time(trend), trend.weight
        yield TREND, lambda places: personal(places).add_(trend_scores(times[places]))
        yield RECENT_POPULARITY, lambda places: demand.log_probability() + trend_scores(times[places]) / weight
    for name, counts in popularity_counts(log, preprocessing, item_count).items():
        yield name, popularity_scorer(counts)
    tuner = _tuner(run, encoder, log, preprocessing, len(held.rows))
    yield f"popularity, {tuner.k} segments", segment_scorer(tuner, held)
    if known_events(log, preprocessing).any():
        yield "item-kNN", item_knn_scorer(log, held, preprocessing, item_count)


def _tuner(run: Run, encoder: Encoder, log: EventLog, preprocessing: Preprocessing, users: int) -> HybridTuner:
    """The embeddings and segments of the run, at most one segment for ten of the test's `users`."""
    settings = run.config().segment
    items = encoder.item_embeddings().detach().numpy()
    embed = partial(_embed, UserEncoder.load(encoder, run.require("train")))
    k = max(1, min(fixed_k(settings), users // 10))
    return HybridTuner(
        log, preprocessing, items, embed, k, choose_engine(settings.backend), KMeansSettings.of(settings)
    )


def _embed(encoder: UserEncoder, features: Features) -> NDArray[np.float32]:
    return embed_histories(encoder, features, encoder.shape).numpy()


def encoder_scorer(encoder: Encoder, log: EventLog, held: HeldOut) -> Scorer:
    """Scores items by the inner products of user and item embeddings."""
    users = embed_users(encoder, log, held)
    with torch.inference_mode():
        items = encoder.item_embeddings().T.contiguous()
    return lambda places: users[torch.from_numpy(places)] @ items


def rank_targets(scorer: Scorer, protocol: Protocol) -> tuple[NDArray[np.int64], torch.Tensor]:
    """The rank of each target from 0, (T,), and the item rows of each user's list, (T, `LIST_LENGTH`)."""
    held, item_count = protocol.held, len(protocol.training_counts)
    step = max(1, min(256, _SCORES_AT_ONCE // item_count))
    ranks, top_items = [], []
    with torch.inference_mode():
        for start in range(0, len(held.rows), step):
            places = np.arange(start, min(start + step, len(held.rows)))
            part = select_targets(held, places)
            scores = scorer(places)
            if protocol.exclude_seen:
                leave_out_seen(scores, protocol.log, part)
            scores = leave_out_variants(scores, protocol.groups)
            ranks.append(target_ranks(scores, torch.from_numpy(part.targets.astype(np.int64) - 1)))
            top_items.append(scores.topk(min(LIST_LENGTH, item_count), sorted=False).indices)
    return torch.cat(ranks).numpy(), torch.cat(top_items)


def measure(method: str, protocol: Protocol, ranks: NDArray[np.int64], top_items: torch.Tensor) -> Result:
    """The figures of the results of `rank_targets`."""
    counts = protocol.training_counts
    figures = {**ranking_metrics(ranks), f"coverage@{LIST_LENGTH}": coverage(top_items, len(counts))}
    figures |= {f"novelty@{LIST_LENGTH}": novelty(top_items, counts)}
    ndcg, hits = ndcg_each(ranks, 10), (ranks < 10).astype(np.float64)
    slices = tuple(
        UserSlice(name, int(mask.sum()), *(float(each[mask].mean()) if mask.any() else 0.0 for each in (ndcg, hits)))
        for name, mask in protocol.slices().items()
    )
    intervals = bootstrap_interval(ndcg, seed=0), bootstrap_interval(hits, seed=0)
    return Result(protocol.name, method, len(ranks), figures, *intervals, slices)
