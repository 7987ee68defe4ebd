"""Third stage: reads the test targets, once, and ranks every item for every user, beside baselines.

A run trained for leave-one-out is measured by two protocols. `leave-one-out` is that of the published figures: of each
user and item the first event counts, and items of the history are not ranked. `as served`, for logs whose users
repeat themselves: all events count, and nothing is left out. A run trained for a split by time has one, `time split`:
each user's first event of the test period, with items of the history ranked or not as the release would.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from server.core.features import Features
from server.core.preprocessing import Preprocessing
from server.core.repository.layout import read_preprocessing
from training.data.sequences import (
    EventLog,
    HeldOut,
    held_out,
    in_training,
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
from training.evaluation.baselines import by_counts, by_segment, by_similar_items, known_events, popularities
from training.evaluation.results import (
    AS_SERVED,
    ENCODER,
    LEAVE_ONE_OUT,
    METRICS,
    RANKS,
    TIME_SPLIT,
    TREND,
    EvaluateResult,
    Result,
    UserSlice,
)
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
from training.ranking.hybrid import ASKED_USERS, HybridTuner
from training.ranking.trend import Demand, choose_trend, moments_of
from training.runs import Progress, Run, no_progress, write_atomically

LATELY = "popularity, lately"
"""What is in demand when the target is asked for, for everyone alike: by the half-life of the trend, where it helps."""

NEW_ITEMS = "new items"
"""The slice of targets that training never saw."""

_SCORES_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Protocol:
    """Whose targets are asked for, of which reading of the log, and whether items of the history are left out."""

    name: str
    log: EventLog
    held: HeldOut
    exclude_seen: bool
    training_counts: NDArray[np.int64]
    """How often training sees each item, (V,)."""

    def slices(self) -> dict[str, NDArray[np.bool_]]:
        """Which targets belong to which slice, (T,) each: thirds of users by events, and new items."""
        events = self.held.ends - self.log.features.starts[self.held.rows]
        low, high = (int(bound) for bound in np.quantile(events, (1 / 3, 2 / 3), method="lower"))
        masks = {
            f"few (≤ {low})": events <= low,
            f"some (≤ {high})": (events > low) & (events <= high),
            f"many (> {high})": events > high,
        }
        return masks | {NEW_ITEMS: self.training_counts[self.held.targets - 1] == 0}


def evaluate(run: Run, *, progress: Progress = no_progress) -> EvaluateResult:
    """Rank the test targets by the encoder and by baselines. Raises RunError where no user can be tested on."""
    trained = run.require("train")
    prepared = run.require("prepare")
    preprocessing = read_preprocessing(prepared)
    with run.stage("evaluate") as stage:
        encoder = load_encoder(trained)
        item_ids = pl.read_parquet(prepared / "items.parquet", columns=["item_id"])["item_id"]
        results: list[Result] = []
        ranks: list[pl.DataFrame] = []
        asked = list(protocols(prepared, preprocessing, encoder.shape.item_count))
        if not asked:
            raise RunError(_nobody(prepared))
        notes = _notes(asked)
        for protocol in asked:
            for method, scorer in _scorers(run, encoder, protocol, preprocessing, notes):
                progress(f"{protocol.name}: {method}", len(results), 8 * len(asked))
                places = ranks_by(scorer, protocol)
                results.append(measured(method, protocol, *places))
                if method == ENCODER:
                    users = protocol.log.users.gather(protocol.held.rows)
                    targets = item_ids.gather(protocol.held.targets - 1)
                    columns = {"user_id": users, "item_id": targets, "rank": places[0]}
                    ranks.append(pl.DataFrame({"protocol": [protocol.name] * len(users), **columns}))
        pl.concat(ranks).write_parquet(stage.directory / RANKS)
        content = {"results": [asdict(result) for result in results], "notes": notes}
        write_atomically(stage.directory / METRICS, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        for result in results:
            prefix = f"{result.protocol}/{result.method}"
            stage.figures |= {f"{prefix}/{name}": round(value, 6) for name, value in result.figures.items()}
    return EvaluateResult(stage.directory, tuple(results), tuple(notes))


def protocols(prepared: Path, preprocessing: Preprocessing, item_count: int) -> Iterator[Protocol]:
    """Those that the run's split allows and that have someone to ask."""
    positive = positive_actions(preprocessing)
    if read_split(prepared).by_time:
        log = read_sequences(prepared, preprocessing)
        yield from _asked(TIME_SPLIT, log, held_out(log, 1, positive), preprocessing.exclude_seen, item_count)
        return
    first = read_first_events(prepared, preprocessing)
    yield from _asked(LEAVE_ONE_OUT, first, held_out(first, 1), True, item_count)
    if not preprocessing.exclude_seen:
        log = read_log(prepared, preprocessing)
        yield from _asked(AS_SERVED, log, held_out(log, 1, positive), False, item_count)


def _asked(name: str, log: EventLog, held: HeldOut, exclude_seen: bool, item_count: int) -> tuple[Protocol, ...]:
    if not len(held.rows):
        return ()
    counts = np.bincount(log.features.item_index[in_training(log)] - 1, minlength=item_count)
    return (Protocol(name, log, held, exclude_seen, counts),)


def _nobody(prepared: Path) -> str:
    if read_split(prepared).by_time:
        return "Nobody can be tested on: no user has events both before and in the test period of [split]."
    return "No user has enough events to test on: evaluation needs users with five events."


def _notes(asked: list[Protocol]) -> list[str]:
    notes = []
    for protocol in asked:
        log = protocol.log
        if log.split.by_time:
            starts = period_starts(log, 1)
            new = (starts == log.features.starts) & (log.features.lengths > 0)
            notes.append(f"{log.split.describe()}; users who came only then, and are not asked: {int(new.sum()):,}")
    return notes


def _scorers(
    run: Run, encoder: Encoder, protocol: Protocol, preprocessing: Preprocessing, notes: list[str]
) -> Iterator[tuple[str, Scorer]]:
    """Each method by name. What there is to say of one goes into `notes`."""
    log, held, item_count = protocol.log, protocol.held, encoder.shape.item_count
    personal = by_encoder(encoder, log, held)
    yield ENCODER, personal
    asked = sample_targets(held_out(log, 2, positive_actions(preprocessing)), ASKED_USERS, 0)
    validated = by_encoder(encoder, log, asked)
    trend = choose_trend(log, asked, validated, preprocessing, item_count, exclude_seen=protocol.exclude_seen)
    if trend:
        when = "the start of the test period" if log.split.by_time else "each target's day, as with a release made then"
        notes.append(f"{protocol.name}: trend and {LATELY}: {trend.in_words()}, of the events before {when}")
        demand, moments = Demand(log, 1, preprocessing, item_count), moments_of(log, held, 1)
        lately, weight = demand.by_time(trend), trend.weight
        yield TREND, lambda places: personal(places).add_(lately(moments[places]))
        yield LATELY, lambda places: demand.ever() + lately(moments[places]) / weight
    for name, counts in popularities(log, preprocessing, item_count).items():
        yield name, by_counts(counts)
    settings = run.config().segment
    items = encoder.item_embeddings().detach().numpy()
    embed = partial(_embed, UserEncoder.load(encoder, run.require("train")))
    k = max(1, min(fixed_k(settings), len(held.rows) // 10))
    mixer = HybridTuner(
        log, preprocessing, items, embed, k, choose_engine(settings.backend), KMeansSettings.of(settings)
    )
    yield f"popularity, {k} segments", by_segment(mixer, held)
    if known_events(log, preprocessing).any():
        yield "item-kNN", by_similar_items(log, held, preprocessing, item_count)


def _embed(encoder: UserEncoder, features: Features) -> NDArray[np.float32]:
    return embed_histories(encoder, features, encoder.shape).numpy()


def by_encoder(encoder: Encoder, log: EventLog, held: HeldOut) -> Scorer:
    """Inner products of user and item embeddings."""
    users = embed_users(encoder, log, held)
    with torch.inference_mode():
        items = encoder.item_embeddings().T.contiguous()
    return lambda places: users[torch.from_numpy(places)] @ items


def ranks_by(scorer: Scorer, protocol: Protocol) -> tuple[NDArray[np.int64], torch.Tensor]:
    """Rank of each target from 0, (T,), and the rows of the first items of each list, (T, 10)."""
    held, item_count = protocol.held, len(protocol.training_counts)
    step = max(1, min(256, _SCORES_AT_ONCE // item_count))
    ranks, listed = [], []
    with torch.inference_mode():
        for start in range(0, len(held.rows), step):
            places = np.arange(start, min(start + step, len(held.rows)))
            part = select_targets(held, places)
            scores = scorer(places)
            if protocol.exclude_seen:
                leave_out_seen(scores, protocol.log, part)
            ranks.append(target_ranks(scores, torch.from_numpy(part.targets.astype(np.int64) - 1)))
            listed.append(scores.topk(min(LIST_LENGTH, item_count), sorted=False).indices)
    return torch.cat(ranks).numpy(), torch.cat(listed)


def measured(method: str, protocol: Protocol, ranks: NDArray[np.int64], listed: torch.Tensor) -> Result:
    """Figures of what `ranks_by` found."""
    counts = protocol.training_counts
    figures = {**ranking_metrics(ranks), f"coverage@{LIST_LENGTH}": coverage(listed, len(counts))}
    figures |= {f"novelty@{LIST_LENGTH}": novelty(listed, counts)}
    gains, hits = ndcg_each(ranks, 10), (ranks < 10).astype(np.float64)
    slices = tuple(
        UserSlice(name, int(mask.sum()), *(float(each[mask].mean()) if mask.any() else 0.0 for each in (gains, hits)))
        for name, mask in protocol.slices().items()
    )
    intervals = bootstrap_interval(gains, seed=0), bootstrap_interval(hits, seed=0)
    return Result(protocol.name, method, len(ranks), figures, *intervals, slices)
