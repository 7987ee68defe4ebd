"""Third stage: reads the test targets, once, and ranks every item for every user, beside popularity.

Two protocols. `leave-one-out` is that of the published figures: of each user and item the first event counts, and
items of the history are not ranked. `as served`, for logs whose users repeat themselves: all events count, and
nothing is left out.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from server.core.features import batches
from server.core.preprocessing import Preprocessing
from training.encoder import Encoder
from training.errors import RunError
from training.metrics import bootstrap_interval, coverage, ndcg_each, ranking_metrics, target_ranks
from training.runs import Progress, Run, no_progress, write_atomically
from training.sequences import (
    HeldOut,
    Log,
    chosen,
    held_out,
    history_features,
    in_training,
    positive_actions,
    read_first_events,
    read_log,
    seen_pairs,
)
from training.train import load_encoder

LEAVE_ONE_OUT = "leave-one-out"
AS_SERVED = "as served"

RECENT_DAYS = 7
"""Recent popularity counts the last days of the training part, so many."""

_LIST_LENGTH = 10
_USERS_AT_ONCE = 256
_DAY_MS = 86_400_000
_COLUMNS = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr", "coverage@10")

Scorer = Callable[[NDArray[np.intp]], Tensor]
"""Places of users among the targets → their scores of all items, (b, V), free to be overwritten."""


@dataclass(frozen=True)
class Result:
    """One method under one protocol, over `users` users.

    `figures` are named as by `ranking_metrics`, with `coverage@10`; `interval` holds the true NDCG@10 at 95 %.
    """

    protocol: str
    method: str
    users: int
    figures: Mapping[str, float]
    interval: tuple[float, float]


@dataclass(frozen=True)
class EvaluateResult:
    """What `evaluate` found and wrote to `metrics.json` in `directory`."""

    directory: Path
    results: tuple[Result, ...]

    def table(self) -> Table:
        """The results for rich to print."""
        table = Table("protocol", "method", title="Next item: all items ranked, test targets")
        for name in ("users", *_COLUMNS, "NDCG@10 at 95 %"):
            table.add_column(name.replace("hr", "HR").replace("ndcg", "NDCG").replace("mrr", "MRR"), justify="right")
        for result in self.results:
            low, high = result.interval
            cells = [f"{result.figures[name]:.4f}" for name in _COLUMNS]
            row = (result.protocol, result.method, f"{result.users:,}", *cells, f"{low:.4f} – {high:.4f}")
            table.add_row(*row, style="bold" if result.method == "encoder" else None)
        return table


@dataclass(frozen=True)
class _Protocol:
    name: str
    log: Log
    held: HeldOut
    exclude_seen: bool


def evaluate(run: Run, *, progress: Progress = no_progress) -> EvaluateResult:
    """Rank the test targets by the encoder and by popularity. Raises RunError where no user has enough events."""
    trained = run.require("train")
    prepared = run.require("prepare")
    preprocessing = Preprocessing.model_validate_json((prepared / "preprocessing.json").read_bytes())
    with run.stage("evaluate") as stage:
        encoder = load_encoder(trained)
        results: list[Result] = []
        for protocol in _protocols(prepared, preprocessing):
            scorers: dict[str, Scorer] = {"encoder": _by_encoder(encoder, protocol)}
            for name, counts in popularities(protocol.log, preprocessing, encoder.shape.item_count).items():
                scorers[name] = _by_counts(counts)
            for method, scorer in scorers.items():
                progress(f"{protocol.name}: {method}", len(results), 0)
                results.append(_measure(method, scorer, protocol))
        if not results:
            raise RunError("No user has enough events to test on: evaluation needs users with five events.")
        write_atomically(stage.directory / "metrics.json", json.dumps([asdict(r) for r in results], indent=1) + "\n")
        for result in results:
            prefix = f"{result.protocol}/{result.method}"
            stage.figures |= {f"{prefix}/{name}": round(value, 6) for name, value in result.figures.items()}
    return EvaluateResult(stage.directory, tuple(results))


def popularities(log: Log, preprocessing: Preprocessing, item_count: int) -> dict[str, NDArray[np.int64]]:
    """How often training sees each item (V,), by name: of all times and, for logs with a clock, of the last days."""
    counted = in_training(log) & positive_actions(preprocessing)[log.features.action_index]
    masks = {"popularity": counted}
    if preprocessing.has_clock and counted.any():
        newest = log.timestamp[counted].max()
        masks[f"popularity, {RECENT_DAYS} days"] = counted & (log.timestamp > newest - RECENT_DAYS * _DAY_MS)
    rows = log.features.item_index - 1
    return {name: np.bincount(rows[mask], minlength=item_count) for name, mask in masks.items()}


def _protocols(prepared: Path, preprocessing: Preprocessing) -> Iterator[_Protocol]:
    first = read_first_events(prepared, preprocessing)
    yield from _asked(_Protocol(LEAVE_ONE_OUT, first, held_out(first, 1), exclude_seen=True))
    if not preprocessing.exclude_seen:
        log = read_log(prepared, preprocessing)
        held = held_out(log, 1, positive_actions(preprocessing))
        yield from _asked(_Protocol(AS_SERVED, log, held, exclude_seen=False))


def _asked(protocol: _Protocol) -> tuple[_Protocol, ...]:
    return (protocol,) if len(protocol.held.rows) else ()


def _by_encoder(encoder: Encoder, protocol: _Protocol) -> Scorer:
    users = torch.zeros(len(protocol.held.rows), encoder.shape.embedding_dim)
    length = encoder.shape.max_length
    with torch.inference_mode():
        for places, inputs in batches(history_features(protocol.log, protocol.held, length), length):
            users[places] = encoder(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        items = encoder.item_embeddings().T.contiguous()
    return lambda places: users[places] @ items


def _by_counts(counts: NDArray[np.int64]) -> Scorer:
    scores = torch.from_numpy(counts).float()
    return lambda places: scores.repeat(len(places), 1)


def _measure(method: str, scorer: Scorer, protocol: _Protocol) -> Result:
    held = protocol.held
    ranks, listed, item_count = [], [], 0
    for start in range(0, len(held.rows), _USERS_AT_ONCE):
        places = np.arange(start, min(start + _USERS_AT_ONCE, len(held.rows)))
        part = chosen(held, places)
        scores = scorer(places)
        if protocol.exclude_seen:
            row, seen = (torch.from_numpy(array) for array in seen_pairs(protocol.log, part))
            scores[row, seen] = -torch.inf
        ranks.append(target_ranks(scores, torch.from_numpy(part.targets.astype(np.int64) - 1)))
        item_count = scores.shape[1]
        listed.append(scores.topk(min(_LIST_LENGTH, item_count), sorted=False).indices)
    places_found = torch.cat(ranks).numpy()
    figures = {**ranking_metrics(places_found), "coverage@10": coverage(torch.cat(listed), item_count)}
    interval = bootstrap_interval(ndcg_each(places_found, 10), seed=0)
    return Result(protocol.name, method, len(held.rows), figures, interval)
