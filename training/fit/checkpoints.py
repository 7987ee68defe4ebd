"""Checkpoints that survive a kill at any moment."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

CHECKPOINT = "last.ckpt"

CHECKPOINT_MINUTES = 10
"""Most of a long epoch that can be lost."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint and renames: a reader finds the old file or the new one.

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


class CheckpointInsideEpoch(ModelCheckpoint):
    """Lightning's, between two steps only.

    In the middle of an accumulated step the checkpoint would lack its gradients. After an epoch's last step it would
    lack the validation; there the checkpoint of the epoch follows.
    """

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where the time has come and the epoch is not over."""
        done = batch_idx + 1
        between_steps = done % trainer.accumulate_grad_batches == 0
        epoch_ends = done == trainer.num_training_batches or trainer.should_stop
        if between_steps and not epoch_ends:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def checkpoint_callbacks(directory: Path) -> list[ModelCheckpoint]:
    """Save `CHECKPOINT` after each epoch, and every `CHECKPOINT_MINUTES` inside a long one."""
    name = Path(CHECKPOINT).stem
    interval = timedelta(minutes=CHECKPOINT_MINUTES)
    return [
        ModelCheckpoint(directory, name, enable_version_counter=False, save_on_train_epoch_end=True),
        CheckpointInsideEpoch(directory, name, enable_version_counter=False, train_time_interval=interval),
    ]
