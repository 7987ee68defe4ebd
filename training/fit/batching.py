"""Training and validation batches for torch: the windows of an epoch, cut out of the log."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from server.core.features import Features, batches, pad, padded_length
from server.core.preprocessing import Preprocessing
from server.core.ragged import offsets_of, places_of, rows_of
from server.core.visits import visit_starts
from training.data.sequences import (
    EventLog,
    HeldOut,
    in_training,
    positive_actions,
    seen_pairs,
    select_targets,
)

TARGETS_A_STEP = 1280
"""How many next items a step of the default size predicts: small steps learn more from an event than large ones."""


Batch = dict[str, Tensor]
"""Encoder inputs by name, (B, L) each; `target` (B, L) int64: the next item's index, 0 where there is no target; and
`weight` (): how much the mean loss of this part of a step counts, 1 on average over the parts."""


@dataclass(frozen=True, slots=True)
class StepShards:
    """Into how many parts each step is cut, and which of them this process computes, one after the other.

    A step of N windows on `ranks` processes, in `accumulate` pieces on each, has `ranks * accumulate` parts. The step
    is the same however it is cut.
    """

    rank: int = 0
    ranks: int = 1
    accumulate: int = 1

    @property
    def count(self) -> int:
        """Parts of a step."""
        return self.ranks * self.accumulate

    def part(self, turn: int) -> int:
        """Which part of its step this process computes at its batch number `turn` of an epoch."""
        return turn % self.accumulate * self.ranks + self.rank


@dataclass(frozen=True, slots=True)
class StepWindows:
    """Windows of one step of an epoch: they end before `ends` (B,) and hold `lengths` (B,) events, the last only as
    target.

    A batch is made of part number `part` of `parts` of the step.
    """

    ends: NDArray[np.int64]
    lengths: NDArray[np.int64]
    part: int = 0
    parts: int = 1
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class EpochEvents:
    """The events of the log in the order of an epoch, and the target after each: an item index, 0 for none, (N,)."""

    features: Features
    target: NDArray[np.int64]


class Targets:
    """What an epoch teaches: the log's events, those of one time in random order, and the target after each event.

    In a log with visits the target is an item of the user's next visit, drawn anew in each epoch; in others it is the
    item of the next event. Events of negative actions are no targets.
    """

    def __init__(self, log: EventLog, preprocessing: Preprocessing, seed: int) -> None:
        self._log = log
        self._positive = positive_actions(preprocessing)
        self._seed = seed
        user, count = log.event_users, len(log.timestamp)
        ends = log.train_ends if log.learns_visits else log.features.ends
        self._ends = np.repeat(ends, log.features.lengths)
        ties = visit_starts(user, log.timestamp, 0.0)
        ties[log.train_ends[log.train_ends < count]] = True  # no target comes into the training part
        self._ties = None if ties.all() or preprocessing.visits.ordered else np.cumsum(ties)
        self._next_visit = None
        if log.learns_visits:
            begins = np.flatnonzero(visit_starts(user, log.timestamp, log.gap_seconds))
            following = np.append(begins[1:], count)[log.visits]
            sizes = np.diff(np.append(begins, count))
            self._next_visit = following, np.append(sizes[1:], 1)[log.visits]
        self._epoch, self._events = -1, EpochEvents(log.features, np.zeros(0, np.int64))

    def at(self, epoch: int) -> EpochEvents:
        """The events and targets of an epoch, which depend on its number and the seed only."""
        if self._epoch != epoch:
            self._events, self._epoch = self._drawn(np.random.default_rng((self._seed, epoch, 1))), epoch
        return self._events

    def _drawn(self, rng: np.random.Generator) -> EpochEvents:
        features, count = self._log.features, len(self._log.timestamp)
        if self._ties is not None:
            order = np.lexsort((rng.random(count), self._ties))
            columns = {name: getattr(features, name)[order] for name in ("item_index", "action_index", "value")}
            features = replace(features, **columns)  # gaps belong to places: 0 between events of one time
        following = np.arange(1, count + 1)
        if self._next_visit is not None:
            begins, sizes = self._next_visit
            following = begins + (rng.random(count) * sizes).astype(np.int64)
        is_target = following < self._ends
        following = np.where(is_target, following, 0)
        is_target &= self._positive[features.action_index[following]]
        return EpochEvents(features, np.where(is_target, features.item_index[following], 0).astype(np.int64))


class Windows(Dataset[Batch]):
    """Training batches, cut out of the log by the same `pad` that serving uses."""

    def __init__(self, log: EventLog, preprocessing: Preprocessing, seed: int = 0) -> None:
        self._targets = Targets(log, preprocessing, seed)
        self._max_length = preprocessing.max_length

    def __getitem__(self, window: StepWindows) -> Batch:
        """Inputs are all events but the last, each with its target.

        A part without any window, as in a step of fewer windows than parts, gets one without targets.
        """
        events = self._targets.at(window.epoch)
        ends, lengths = window.ends - 1, window.lengths - 1
        before = offsets_of(events.target[places_of(ends - lengths, lengths)] > 0)
        bounds = offsets_of(lengths)
        counts = before[bounds[1:]] - before[bounds[:-1]]
        mine = slice(window.part, None, window.parts)
        weight = window.parts * counts[mine].sum() / max(counts.sum(), 1)
        ends, lengths, is_empty = ends[mine], lengths[mine], not len(ends[mine])
        if is_empty:
            ends, lengths = window.ends[:1], np.ones(1, np.int64)
        padded = pad(events.features, ends, lengths, length := padded_length(int(lengths.max()), self._max_length))
        columns = np.arange(length) - length
        valid = (columns >= -lengths[:, None]) & (not is_empty)
        target = np.where(valid, events.target[np.where(valid, ends[:, None] + columns, 0)], 0)
        return {name: torch.from_numpy(column) for name, column in padded.items()} | {
            "target": torch.from_numpy(target),
            "weight": torch.tensor(weight, dtype=torch.float32),
        }


class EpochPlan(Sampler[StepWindows]):
    """Which windows make up an epoch, batch by batch: every event once as target, long histories in tiles.

    The places of the tiles change from epoch to epoch. Windows of like length share a batch of `batch_size`, and
    batches come in random order. The plan depends on seed and epoch only, and is the same for all processes: with
    `parts` each takes its part of every step. An epoch that was cut off goes on at the batch named by `start_at`.
    """

    def __init__(
        self, log: EventLog, max_length: int, batch_size: int | None, seed: int, parts: StepShards | None = None
    ) -> None:
        starts = log.features.starts
        target_counts = log.train_ends - starts - 1
        users = np.flatnonzero(target_counts > 0)
        tiles = -(-target_counts[users] // max_length)
        self._start = np.repeat(starts[users], tiles)
        self._targets = np.repeat(target_counts[users], tiles)
        self._tile = places_of(0, tiles)
        self._slack = np.repeat(tiles * max_length - target_counts[users], tiles)
        self._user = rows_of(tiles)
        self._user_count = len(users)
        self._max_length = max_length
        self.batch_size = batch_size or max(1, TARGETS_A_STEP * len(self._tile) // max(int(target_counts.sum()), 1))
        self.steps = math.ceil(len(self._tile) / self.batch_size)
        self.parts = parts or StepShards()
        self._seed = seed
        self._epoch = 0
        self._first_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch

    def start_at(self, batch: int) -> None:
        """Leave out the first batches of the next epoch; the epoch after it is whole again."""
        self._first_batch = batch

    def __len__(self) -> int:
        """Batches of a whole epoch for this process: a step has `parts.accumulate` of them."""
        return self.steps * self.parts.accumulate

    def __iter__(self) -> Iterator[StepWindows]:
        rng = np.random.default_rng((self._seed, self._epoch))
        shift = (rng.random(self._user_count)[self._user] * (self._slack + 1)).astype(np.int64)
        shift = np.where(self._targets > self._max_length, shift, 0)
        first = np.maximum(self._tile * self._max_length - shift, 0)
        last = np.minimum((self._tile + 1) * self._max_length - shift, self._targets)
        ends, lengths = self._start + last + 1, last - first + 1
        order = np.argsort(lengths + rng.random(len(lengths)) * 0.99, kind="stable")
        parts = np.array_split(order, np.arange(self.batch_size, len(order), self.batch_size))
        steps = rng.permutation(len(parts))
        first_batch, self._first_batch = self._first_batch, 0
        for turn in range(first_batch, len(self)):
            chosen_part = parts[steps[turn // self.parts.accumulate]]
            part = self.parts.part(turn)
            yield StepWindows(ends[chosen_part], lengths[chosen_part], part, self.parts.count, self._epoch)


class Validation(Dataset[Batch]):
    """Batches of histories with their targets.

    Encoder inputs (B, L); `place` and `target` (T,): the place in the batch of each target, and its item row; and
    `seen_place`, `seen_row` (P,): pairs of place in the batch and row of an item that is not to be ranked, empty unless
    the log excludes seen items.
    """

    def __init__(self, log: EventLog, held: HeldOut, preprocessing: Preprocessing) -> None:
        self._log = log
        self._held = held
        self._exclude_seen = preprocessing.exclude_seen
        _, self._first, self._counts = np.unique(held.rows, return_index=True, return_counts=True)
        users = select_targets(held, self._first)
        histories = log.histories(users.rows, users.ends, preprocessing.max_length)
        self._batches = batches(histories, preprocessing.max_length)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        users, inputs = self._batches[index]
        first, counts = self._first[users], self._counts[users]
        target = self._held.targets[places_of(first, counts)].astype(np.int64) - 1
        seen_place, seen_row = (np.empty(0, np.intp),) * 2
        if self._exclude_seen:
            seen_place, seen_row = seen_pairs(self._log, select_targets(self._held, first))
        more = {"place": rows_of(counts), "target": target, "seen_place": seen_place, "seen_row": seen_row}
        return {name: torch.from_numpy(column) for name, column in {**inputs, **more}.items()}


def target_counts(log: EventLog, item_count: int) -> Tensor:
    """How often training sees each item, (V,) int64."""
    rows = log.features.item_index[in_training(log)] - 1
    return torch.from_numpy(np.bincount(rows, minlength=item_count))
