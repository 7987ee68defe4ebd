"""Third stage: reads the test targets, once, and ranks every item for every user, beside baselines.

A run trained for leave-one-out is measured by two protocols. `leave-one-out` is that of the published figures: of each
user and item the first event counts, and items of the history are not ranked. `as served`, for logs whose users
repeat themselves: all events count, and nothing is left out. A run trained for a split by time has one, `time split`:
each user's first event of the test period, with items of the history ranked or not as the release would.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.table import Table

from server.core.features import Features
from server.core.preprocessing import Preprocessing
from training.baselines import Scorer, by_counts, by_segment, by_similar_items, known_events, popularities
from training.encoder import Encoder
from training.errors import RunError
from training.hybrid import Mixer
from training.kmeans import choose_engine
from training.kmeans_settings import KMeansSettings, fixed_k
from training.metrics import (
    CUTOFFS,
    LIST_LENGTH,
    bootstrap_interval,
    coverage,
    ndcg_each,
    novelty,
    ranking_metrics,
    target_ranks,
)
from training.ranks import embedded, users_of
from training.runs import Progress, Run, no_progress, write_atomically
from training.segment_embedding import UserEncoder
from training.sequences import (
    HeldOut,
    Log,
    chosen,
    held_out,
    in_training,
    period_starts,
    positive_actions,
    read_first_events,
    read_log,
    read_sequences,
    seen_pairs,
)
from training.split import read_split
from training.train import load_encoder

LEAVE_ONE_OUT = "leave-one-out"
AS_SERVED = "as served"
TIME_SPLIT = "time split"
ENCODER = "encoder"
RANKS = "ranks.parquet"
"""The encoder's rank of each target: protocol, user_id, item_id, rank (from 0); comparisons of runs read it."""

NEW_ITEMS = "new items"
"""The slice of targets that training never saw."""

_FILE = "metrics.json"
_COMPARED_K = 8
"""Segments that the encoder is compared with where their number is chosen later, from what the segment stage sees."""

_SCORES_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Slice:
    """Some of a protocol's users: those of few, some or many events before the target, or with a new item as target."""

    name: str
    users: int
    ndcg: float
    hr: float


@dataclass(frozen=True)
class Result:
    """One method under one protocol, over `users` users.

    `figures` are named as by `ranking_metrics`, with `coverage@10` and `novelty@10`; `interval` holds the true NDCG@10
    and `hr_interval` the true HR@10 at 95 %.
    """

    protocol: str
    method: str
    users: int
    figures: Mapping[str, float]
    interval: tuple[float, float]
    hr_interval: tuple[float, float]
    slices: tuple[Slice, ...]

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Self:
        """From JSON."""
        slices = tuple(Slice(**part) for part in raw["slices"])
        intervals = {name: tuple(raw[name]) for name in ("interval", "hr_interval")}
        return cls(**{**raw, **intervals, "slices": slices})


@dataclass(frozen=True)
class EvaluateResult:
    """What `evaluate` found and wrote to `metrics.json` in `directory`; `notes` are sentences for people."""

    directory: Path
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, directory: Path) -> Self:
        """What an evaluation of a run wrote."""
        raw = json.loads((directory / _FILE).read_text(encoding="utf-8"))
        return cls(directory, tuple(map(Result.read, raw["results"])), tuple(raw["notes"]))

    def tables(self) -> list[Table]:
        """The results for rich to print: for each protocol its figures, and its slices."""
        tables = []
        for protocol in dict.fromkeys(result.protocol for result in self.results):
            results = [result for result in self.results if result.protocol == protocol]
            tables += [_figures_table(results), _slices_table(results)]
        return tables


def _figures_table(results: list[Result]) -> Table:
    first = results[0]
    title = f"Next item, {first.protocol}: {first.users:,} users, all items ranked, at 5 | 10 | 20"
    table = Table("method", title=title)
    intervals = "NDCG@10\nat 95 %", "HR@10\nat 95 %"
    for heading in ("HR", "NDCG", "MRR", "coverage\n@10", "novelty\n@10, bit", *intervals):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        cells = [_at_cutoffs(result.figures, name) for name in ("hr", "ndcg", "mrr")]
        cells += [f"{result.figures['coverage@10']:.3f}", f"{result.figures['novelty@10']:.2f}"]
        cells += [f"{_short(low)} – {_short(high)}" for low, high in (result.interval, result.hr_interval)]
        table.add_row(result.method, *cells, style="bold" if result.method == ENCODER else None)
    return table


def _at_cutoffs(figures: Mapping[str, float], name: str) -> str:
    return " ".join(_short(figures[f"{name}@{k}"]) for k in CUTOFFS)


def _short(share: float) -> str:
    return f"{share:.4f}".removeprefix("0")


def _slices_table(results: list[Result]) -> Table:
    table = Table("method", title=f"NDCG@10 | HR@10 by events before the target, {results[0].protocol}")
    for part in results[0].slices:
        table.add_column(f"{part.name}\n{part.users:,} users", justify="right")
    for result in results:
        cells = [f"{part.ndcg:.4f}  {part.hr:.4f}" if part.users else "–" for part in result.slices]
        table.add_row(result.method, *cells, style="bold" if result.method == ENCODER else None)
    return table


@dataclass(frozen=True)
class Protocol:
    """Whose targets are asked for, of which reading of the log, and whether items of the history are left out."""

    name: str
    log: Log
    held: HeldOut
    exclude_seen: bool
    training_counts: NDArray[np.int64]
    """How often training sees each item, (V,)."""

    def slices(self) -> dict[str, NDArray[np.bool_]]:
        """Which targets belong to which slice, (T,) each: thirds of users by events, and new items."""
        events = self.held.ends - self.log.features.offsets[self.held.rows]
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
    preprocessing = Preprocessing.model_validate_json((prepared / "preprocessing.json").read_bytes())
    with run.stage("evaluate") as stage:
        encoder = load_encoder(trained)
        item_ids = pl.read_parquet(prepared / "items.parquet", columns=["item_id"])["item_id"]
        results: list[Result] = []
        ranks: list[pl.DataFrame] = []
        asked = list(protocols(prepared, preprocessing, encoder.shape.item_count))
        if not asked:
            raise RunError(_nobody(prepared))
        for protocol in asked:
            for method, scorer in _scorers(run, encoder, protocol, preprocessing):
                progress(f"{protocol.name}: {method}", len(results), 6 * len(asked))
                places = ranks_by(scorer, protocol)
                results.append(measured(method, protocol, *places))
                if method == ENCODER:
                    users = protocol.log.users.gather(protocol.held.rows)
                    targets = item_ids.gather(protocol.held.targets - 1)
                    columns = {"user_id": users, "item_id": targets, "rank": places[0]}
                    ranks.append(pl.DataFrame({"protocol": [protocol.name] * len(users), **columns}))
        pl.concat(ranks).write_parquet(stage.directory / RANKS)
        notes = _notes(asked)
        content = {"results": [asdict(result) for result in results], "notes": notes}
        write_atomically(stage.directory / _FILE, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        for result in results:
            prefix = f"{result.protocol}/{result.method}"
            stage.figures |= {f"{prefix}/{name}": round(value, 6) for name, value in result.figures.items()}
    return EvaluateResult(stage.directory, tuple(results), notes)


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


def _asked(name: str, log: Log, held: HeldOut, exclude_seen: bool, item_count: int) -> tuple[Protocol, ...]:
    if not len(held.rows):
        return ()
    counts = np.bincount(log.features.item_index[in_training(log)] - 1, minlength=item_count)
    return (Protocol(name, log, held, exclude_seen, counts),)


def _nobody(prepared: Path) -> str:
    if read_split(prepared).by_time:
        return "Nobody can be tested on: no user has events both before and in the test period of [split]."
    return "No user has enough events to test on: evaluation needs users with five events."


def _notes(asked: list[Protocol]) -> tuple[str, ...]:
    notes = []
    for protocol in asked:
        log = protocol.log
        if log.split.by_time:
            starts = period_starts(log, 1)
            new = (starts == log.features.offsets[:-1]) & (log.features.lengths > 0)
            notes.append(f"{log.split.in_words()}; users who came only then, and are not asked: {int(new.sum()):,}")
    return tuple(notes)


def _scorers(
    run: Run, encoder: Encoder, protocol: Protocol, preprocessing: Preprocessing
) -> Iterator[tuple[str, Scorer]]:
    log, held, item_count = protocol.log, protocol.held, encoder.shape.item_count
    yield ENCODER, by_encoder(encoder, log, held)
    for name, counts in popularities(log, preprocessing, item_count).items():
        yield name, by_counts(counts)
    settings = run.config().segment
    items = encoder.item_embeddings().detach().numpy()
    embed = partial(_embed, UserEncoder.load(encoder, run.require("train")))
    k = max(1, min(fixed_k(settings), len(held.rows) // 10))
    mixer = Mixer(log, preprocessing, items, embed, k, choose_engine(settings.backend), KMeansSettings.of(settings))
    yield f"popularity, {k} segments", by_segment(mixer, held)
    if known_events(log, preprocessing).any():
        yield "item-kNN", by_similar_items(log, held, preprocessing, item_count)


def _embed(encoder: UserEncoder, features: Features) -> NDArray[np.float32]:
    return embedded(encoder, features, encoder.shape).numpy()


def by_encoder(encoder: Encoder, log: Log, held: HeldOut) -> Scorer:
    """Inner products of user and item embeddings."""
    users = users_of(encoder, log, held)
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
            part = chosen(held, places)
            scores = scorer(places)
            if protocol.exclude_seen:
                row, seen = (torch.from_numpy(array) for array in seen_pairs(protocol.log, part))
                scores[row, seen] = -torch.inf
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
        Slice(name, int(mask.sum()), *(float(each[mask].mean()) if mask.any() else 0.0 for each in (gains, hits)))
        for name, mask in protocol.slices().items()
    )
    intervals = bootstrap_interval(gains, seed=0), bootstrap_interval(hits, seed=0)
    return Result(protocol.name, method, len(ranks), figures, *intervals, slices)
