"""Training and validation batches for torch: the windows of an epoch, cut out of the log."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from server.core.features import batches, pad, padded_length
from server.core.preprocessing import Preprocessing
from server.core.ragged import offsets_of, places_of, rows_of
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
    """Windows of one step: they end before `ends` (B,) and hold `lengths` (B,) events, the last only as target.

    A batch is made of part number `part` of `parts` of the step.
    """

    ends: NDArray[np.int64]
    lengths: NDArray[np.int64]
    part: int = 0
    parts: int = 1


class Windows(Dataset[Batch]):
    """Training batches, cut out of the log by the same `pad` that serving uses."""

    def __init__(self, log: EventLog, preprocessing: Preprocessing) -> None:
        self._features = log.features
        self._max_length = preprocessing.max_length
        self._positive = positive_actions(preprocessing)
        self._positive_before = offsets_of(self._positive[log.features.action_index])

    def __getitem__(self, window: StepWindows) -> Batch:
        """Inputs are all events but the last; the target of each is the item of the event after it.

        A part without any window, as in a step of fewer windows than parts, gets one without targets.
        """
        counts = self._positive_before[window.ends] - self._positive_before[window.ends - window.lengths + 1]
        mine = slice(window.part, None, window.parts)
        ends, lengths = window.ends[mine], window.lengths[mine]
        if not len(ends):
            ends, lengths = window.ends[:1], np.ones(1, np.int64)
        weight = window.parts * counts[mine].sum() / max(counts.sum(), 1)
        longest = int(lengths.max()) - 1
        padded = pad(self._features, ends, lengths, padded_length(longest, self._max_length) + 1)
        target = np.where(self._positive[padded["action_index"][:, 1:]], padded["item_index"][:, 1:], 0)
        target = np.where(padded["action_index"][:, :-1] != 0, target, 0)
        batch = {name: torch.from_numpy(np.ascontiguousarray(column[:, :-1])) for name, column in padded.items()}
        return batch | {
            "target": torch.from_numpy(target.astype(np.int64)),
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
            yield StepWindows(ends[chosen_part], lengths[chosen_part], self.parts.part(turn), self.parts.count)


class Validation(Dataset[Batch]):
    """Batches of histories with one target each.

    Encoder inputs (B, L); `target` (B,) item rows; and `seen_place`, `seen_row` (P,): pairs of place in the batch and
    row of an item that is not to be ranked, empty unless the log excludes seen items.
    """

    def __init__(self, log: EventLog, held: HeldOut, preprocessing: Preprocessing) -> None:
        self._log = log
        self._held = held
        self._exclude_seen = preprocessing.exclude_seen
        self._batches = batches(log.histories(held.rows, held.ends, preprocessing.max_length), preprocessing.max_length)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        rows, inputs = self._batches[index]
        held = select_targets(self._held, rows)
        places, seen = seen_pairs(self._log, held) if self._exclude_seen else (np.empty(0, np.intp),) * 2
        more = {"target": held.targets.astype(np.int64) - 1, "seen_place": places, "seen_row": seen}
        return {name: torch.from_numpy(column) for name, column in {**inputs, **more}.items()}


def target_counts(log: EventLog, item_count: int) -> Tensor:
    """How often training sees each item, (V,) int64."""
    rows = log.features.item_index[in_training(log)] - 1
    return torch.from_numpy(np.bincount(rows, minlength=item_count))
