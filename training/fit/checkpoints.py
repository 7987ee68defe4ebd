"""Checkpoints that survive a kill at any moment, and loaders that go on in the middle of an epoch."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch.utils.data import DataLoader

from training.fit.batching import Batch, EpochPlan, Windows


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes beside the checkpoint and renames: a reader finds the old one or the new one.

    Lightning's own way builds the whole file in memory first, and moves it there from `/tmp`, which copies where that
    is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, *_: Any, **__: Any) -> None:
        """Write `checkpoint` to `path`; there are no storage options."""
        temporary = Path(path).with_name(f".{Path(path).name}")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


class Checkpoints(Checkpoint):
    """Saves a checkpoint after each epoch, and every `minutes` inside a long one, always between two steps."""

    def __init__(self, path: Path, seconds: Callable[[], float], minutes: float) -> None:
        """`seconds` tells how long training has taken, all processes the same."""
        super().__init__()
        self._path = path
        self._seconds = seconds
        self._interval = 60 * minutes
        self._saved = 0.0

    def on_train_start(self, *_: Any) -> None:
        """The time until then is not training."""
        self._saved = self._seconds()

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Save where the time has come and the epoch is not over."""
        done = int(args[-1]) + 1
        between_steps = done % trainer.accumulate_grad_batches == 0
        ends = done == trainer.num_training_batches or trainer.should_stop
        if between_steps and not ends and self._seconds() - self._saved >= self._interval:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Save."""
        self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self._path)
        self._saved = self._seconds()


class ResumableLoader(DataLoader[Batch]):
    """Training batches in the order of a plan; a checkpoint inside an epoch notes how far it was."""

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
