"""Who trains on which batches: the plan of the epochs, and the loaders of training and validation."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DataLoader

from server.core.preprocessing import Preprocessing
from training.config import TrainSettings
from training.data.sequences import EventLog, held_out, positive_actions, sample_targets, select_targets
from training.errors import LogError
from training.fit.batching import Batch, EpochPlan, StepShards, Validation, Windows
from training.fit.processes import Processes

_VALIDATION_USERS = 5000
_VALIDATION_SCORES = 2_000_000_000
"""Most users times items of a validation: 2,000 users with a million items, which takes a CPU some 15 seconds."""


class TrainingLoader(DataLoader[Batch]):
    """Training batches in the order of a plan; a checkpoint inside an epoch notes how many were given."""

    def __init__(self, windows: Windows, plan: EpochPlan) -> None:
        super().__init__(windows, sampler=plan, batch_size=None)
        self._plan = plan
        self._given = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """The rest of an epoch that was cut off, a whole one otherwise."""
        for batch in super().__iter__():
            self._given = (self._given + 1) % len(self._plan)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Called by Lightning with each checkpoint."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Called by Lightning before the first epoch that goes on."""
        self._given = state["given"]
        self._plan.start_at(self._given)


def plan_epochs(log: EventLog, max_length: int, settings: TrainSettings, processes: Processes) -> EpochPlan:
    """This process's part of each epoch. Raises LogError where there is nothing to learn from."""
    shards = StepShards(processes.rank, processes.count, settings.accumulate)
    plan = EpochPlan(log, max_length, settings.batch_size, settings.seed, shards)
    if not plan.steps:
        raise LogError(
            "No user has an event after which another is known and liked, apart from those held back for the test; the "
            "log needs longer histories, or more items."
        )
    return plan


def validation_loader(
    log: EventLog, preprocessing: Preprocessing, item_count: int, seed: int, processes: Processes
) -> DataLoader[Batch] | None:
    """This process's share of a sample of the validation targets; None where no user has one."""
    users = max(1, min(_VALIDATION_USERS, _VALIDATION_SCORES // item_count))
    targets = sample_targets(held_out(log, 2, positive_actions(preprocessing)), users, seed)
    if not len(targets.rows):
        return None
    if len(targets.rows) >= processes.count:  # with fewer every process validates all: the mean is the same
        targets = select_targets(targets, np.arange(processes.rank, len(targets.rows), processes.count))
    return DataLoader(Validation(log, targets, preprocessing), batch_size=None)
