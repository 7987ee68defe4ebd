"""Fusion: makes one run, with one encoder and one ONNX file, from several runs on the same data.

The fused score is a weighted sum of the members' scores, each divided by its standard deviation over a user's items
(see `training.model.ensemble`). Weights are equal unless other weights are significantly better on validation users.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from server.core.figures import ENCODER, VALIDATION, figures_of
from server.core.repository.layout import read_preprocessing
from training.data.sequences import (
    EventLog,
    HeldOut,
    held_out,
    one_a_user,
    positive_actions,
    read_sequences,
    sample_targets,
    seen_pairs,
    select_targets,
)
from training.data.split import read_split
from training.errors import RunError
from training.fit.checkpoints import CHECKPOINT
from training.metrics import bootstrap_interval, ndcg_each, target_ranks
from training.model.encoder import Encoder
from training.model.ensemble import Member, write_members
from training.model.quantized import QuantizedEncoder
from training.model.text_projection import ITEM_TEXT
from training.model.torch_inference import embed_users
from training.model.user_encoder import SEGMENT_EMBEDDING, SegmentEmbedding
from training.model.weights import load_encoder
from training.runs import Progress, Run, no_progress, training_seconds

MEMBERS_MAX = 8
_PARTS = 8
"""Candidate weights are multiples of 1 / `_PARTS`."""

_USERS_MAX = 5000
_SCORES_MAX = 50_000_000
"""Limit of validation users times items: a large catalogue is scored for fewer users."""

_USERS_AT_ONCE = 128


@dataclass(frozen=True)
class FuseResult:
    """The new run, its members, and NDCG@10 on validation: of each member alone, with equal weights, and as fused."""

    run: Run
    members: tuple[Member, ...]
    alone: tuple[float, ...]
    equal: float
    fused: float

    def table(self) -> Table:
        """One row per member, then equal weights, then the fused run."""
        table = Table("run", title="Fused: validation targets, all items ranked")
        table.add_column("weight", justify="right")
        table.add_column("NDCG@10", justify="right")
        for member, ndcg in zip(self.members, self.alone, strict=True):
            table.add_row(member.run, f"{member.weight:.3f}", f"{ndcg:.4f}")
        table.add_row("equal weights", "", f"{self.equal:.4f}")
        table.add_row(self.run.path.name, "1.000", f"{self.fused:.4f}", style="bold")
        return table


@dataclass(frozen=True, slots=True)
class _Scores:
    """Embeddings by one member: `users` (T, D) and `items` (V, D).

    `spread` is the standard deviation of a user's scores over items, `length` the norm of a user embedding, both as
    means over users.
    """

    users: Tensor
    items: Tensor
    spread: float
    length: float


def fuse(runs: Sequence[Run], progress: Progress = no_progress) -> FuseResult:
    """Make one run from several runs on the same prepared data. Raises RunError if they do not match."""
    _check(runs)
    encoders = [load_encoder(run.require("train")) for run in runs]
    for run, encoder in zip(runs, encoders, strict=True):
        if isinstance(encoder, QuantizedEncoder):
            raise RunError(
                f"{run.path} is {encoder.precision}; fuse the run it was made from, then compress the result."
            )
    fused = runs[0].derive("fused", [run.path.name for run in runs])
    try:
        return _fused(fused, runs, encoders, progress)
    except BaseException:
        shutil.rmtree(fused.path)
        raise


def _check(runs: Sequence[Run]) -> None:
    names = [run.path.resolve() for run in runs]
    if not 2 <= len(set(names)) == len(names) <= MEMBERS_MAX:
        raise RunError(f"Fusion takes 2 to {MEMBERS_MAX} different runs.")
    first = _prepared(runs[0])
    for run in runs[1:]:
        for name, value in _prepared(run).items():
            if value != first[name]:
                raise RunError(
                    f"{runs[0].path} and {run.path} differ in {name}; only runs trained on the same prepared data can "
                    "be fused: prepare both from the same files with the same settings."
                )


def _prepared(run: Run) -> dict[str, Any]:
    """The properties that must be equal for two runs to have the same items, inputs and held-back events."""
    prepared, record = run.require("prepare"), run.record()
    return {
        "their log": run.log_identity(),
        "their cleaning": record["config"]["clean"],
        "their split": read_split(prepared),
        "their preprocessing": read_preprocessing(prepared),
        "their catalogue": pl.read_parquet(prepared / "items.parquet", columns=["item_id"])["item_id"].to_list(),
    }


def _fused(fused: Run, runs: Sequence[Run], encoders: Sequence[Encoder], progress: Progress) -> FuseResult:
    with fused.stage("train", deriving=True) as stage:
        prepared = fused.require("prepare")
        preprocessing = read_preprocessing(prepared)
        log = read_sequences(prepared, preprocessing)
        users = min(_USERS_MAX, max(_USERS_AT_ONCE, _SCORES_MAX // encoders[0].shape.item_count))
        targets = one_a_user(held_out(log, 2, positive_actions(preprocessing)), seed=0)
        held = sample_targets(targets, users, seed=0)
        if not len(held.rows):
            raise RunError("No user has enough events to compare the runs on: fusion needs users with five events.")
        scores = []
        for place, encoder in enumerate(encoders):
            progress("scores of each run", place, len(encoders))
            scores.append(_scores(encoder, log, held))
        seen = log if preprocessing.exclude_seen else None
        candidates = candidate_weights(len(runs))
        alone = [tuple(float(other == place) for other in range(len(runs))) for place in range(len(runs))]
        each = _ndcg(scores, held, seen, [*alone, *candidates], progress)
        place = choose_weights([each[weights] for weights in candidates])
        members = members_of([run.path.name for run in runs], candidates[place], scores)
        for number, run in enumerate(runs):
            ignored = shutil.ignore_patterns(CHECKPOINT, ITEM_TEXT, SEGMENT_EMBEDDING)
            shutil.copytree(run.require("train"), stage.directory / str(number), ignore=ignored)
        write_members(stage.directory, members)
        progress("segment embedding", 0, 0)
        encoder, seed = load_encoder(stage.directory), runs[0].config().train.seed
        SegmentEmbedding.fit(encoder, log, preprocessing, seed).write(stage.directory)
        ndcg = {weights: float(values.mean()) for weights, values in each.items()}
        seconds = sum(training_seconds(run) for run in runs)
        stage.figures |= {"training_seconds": seconds, "weights": [member.weight for member in members]}
        stage.quality += figures_of(VALIDATION, ENCODER, {"ndcg@10": ndcg[candidates[place]]})
    return FuseResult(
        fused, members, tuple(ndcg[weights] for weights in alone), ndcg[candidates[0]], ndcg[candidates[place]]
    )


def candidate_weights(count: int) -> list[tuple[float, ...]]:
    """Weights of `count` members: equal weights first, then all positive multiples of an eighth that sum to 1."""
    grid = []
    for cuts in combinations(range(1, _PARTS), count - 1):
        edges = (0, *cuts, _PARTS)
        grid.append(tuple((end - start) / _PARTS for start, end in pairwise(edges)))
    equal = (1 / count,) * count
    return [equal, *(weights for weights in grid if weights != equal)]


def choose_weights(each: Sequence[NDArray[np.float64]]) -> int:
    """Index of the largest mean in `each`, NDCG@10 of users (T,); 0 unless it is better than index 0 at 95 %."""
    best = max(range(len(each)), key=lambda place: float(each[place].mean()))
    low, _ = bootstrap_interval(each[best] - each[0], seed=0)
    return best if low > 0 else 0


def members_of(names: Sequence[str], weights: Sequence[float], scores: Sequence[_Scores]) -> tuple[Member, ...]:
    """The members with their weights and factors; `training.model.ensemble` defines the factors."""
    spread = sum(weight * member.spread for weight, member in zip(weights, scores, strict=True))
    length = sum(weight * member.length for weight, member in zip(weights, scores, strict=True))
    members = []
    for name, weight, member in zip(names, weights, scores, strict=True):
        user_factor = weight**0.5 * length / member.length
        members.append(Member(name, weight, user_factor, weight * spread / member.spread / user_factor))
    return tuple(members)


def _scores(encoder: Encoder, log: EventLog, held: HeldOut) -> _Scores:
    users = embed_users(encoder, log, held)
    with torch.inference_mode():
        items = encoder.item_embeddings()
        starts = range(0, len(users), _USERS_AT_ONCE)
        spread = torch.cat([(users[start : start + _USERS_AT_ONCE] @ items.T).std(1) for start in starts]).mean()
        return _Scores(users, items, float(spread), float(torch.linalg.vector_norm(users, dim=1).mean()))


def _ndcg(
    scores: Sequence[_Scores],
    held: HeldOut,
    seen: EventLog | None,
    candidates: Sequence[tuple[float, ...]],
    progress: Progress,
) -> dict[tuple[float, ...], NDArray[np.float64]]:
    """Each user's NDCG@10 (T,) under each of the candidate weights."""
    each: dict[tuple[float, ...], list[NDArray[np.float64]]] = {weights: [] for weights in candidates}
    for start in range(0, len(held.rows), _USERS_AT_ONCE):
        progress("weights", start, len(held.rows))
        places = np.arange(start, min(start + _USERS_AT_ONCE, len(held.rows)))
        part = select_targets(held, places)
        targets = torch.from_numpy(part.targets.astype(np.int64) - 1)
        # Scores (B, V) of each member, in units of their spread.
        normal = [member.users[start : start + len(places)] @ member.items.T / member.spread for member in scores]
        for weights in candidates:
            mixed = sum((weight * score for weight, score in zip(weights, normal, strict=True)), torch.zeros(()))
            if seen:
                row, item = (torch.from_numpy(array) for array in seen_pairs(seen, part))
                mixed[row, item] = -torch.inf
            each[weights].append(ndcg_each(target_ranks(mixed, targets).numpy(), 10))
    return {weights: np.concatenate(parts) for weights, parts in each.items()}
