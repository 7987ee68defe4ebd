"""What watches a training: its clock, its progress for people, its curves and best weights."""

import json
import math
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file

from training.errors import RunError
from training.model.encoder import Encoder
from training.model.text_projection import ITEM_TEXT
from training.model.text_tower import TextTower
from training.model.weights import WEIGHTS
from training.runs import CURVES, Progress, write_atomically

METRIC = "ndcg@10"

_VALIDATION_SHARE = 0.25
"""Most of the allowed time that is reserved for the last validation: a pessimistic guess must not end training."""


class TrainingClock(Callback):
    """Seconds spent on a training, equal on all its processes; ends the training when its time is up.

    Seconds before an interruption count. Time is up where another validation, as long as the last one, would end too
    late. The time of the first validation is estimated from a trial batch.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        """The clock starts here. Without `max_minutes` there is no limit."""
        self.seconds = 0.0
        self.is_up = False
        self.limit_seconds = 60 * max_minutes if max_minutes else math.inf
        self._validation_seconds = 0.0
        self._before = 0.0
        self._started = time.monotonic()
        self._validation_started = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Content of a checkpoint."""
        return {"seconds": self.seconds, "validation_seconds": self._validation_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add the seconds of a checkpoint to those of this process."""
        self._before = self.seconds = state_dict["seconds"]
        self._validation_seconds = state_dict["validation_seconds"]

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Read the clock; the learning rate of this step follows it."""
        self._tick(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """End training between two steps where its time is up."""
        batch_index: int = args[-1]
        step_is_whole = (batch_index + 1) % trainer.accumulate_grad_batches == 0
        reserved = min(self._validation_seconds, _VALIDATION_SHARE * self.limit_seconds)
        if step_is_whole and self.seconds + reserved > self.limit_seconds:
            trainer.should_stop = self.is_up = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Read the clock for the curves."""
        self._tick(trainer)

    def on_validation_start(self, *_: Any) -> None:
        """A validation begins."""
        self._validation_started = time.monotonic()

    def on_validation_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """A trial batch begins."""
        if trainer.sanity_checking:
            self._validation_started = time.monotonic()

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Estimate a validation's time from the trial batch."""
        if trainer.sanity_checking:
            batches = sum(trainer.num_val_batches)
            self._validation_seconds = batches * (time.monotonic() - self._validation_started)

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """A validation is over, and its time known."""
        if not trainer.sanity_checking:
            self._validation_seconds = time.monotonic() - self._validation_started

    def _tick(self, trainer: lightning.Trainer) -> None:
        """Set `seconds` to now, and both times to those of the slowest process."""
        self.seconds = self._before + time.monotonic() - self._started
        if trainer.world_size > 1:
            times = torch.tensor([self.seconds, self._validation_seconds], device=trainer.strategy.root_device)
            self.seconds, self._validation_seconds = trainer.strategy.reduce(times, reduce_op="max").tolist()


class BestWeights(Callback):
    """Keeps the curves and the weights that validated best on disk. `best` is their NDCG@10, NaN before the first."""

    def __init__(self, directory: Path, clock: TrainingClock) -> None:
        self.best = math.nan
        self._curves: list[dict[str, float]] = []
        self._directory = directory
        self._clock = clock

    def state_dict(self) -> dict[str, Any]:
        """Content of a checkpoint."""
        return {"best": self.best, "curves": self._curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best, self._curves = state_dict["best"], state_dict["curves"]

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Add to the curves, keep the weights where they are the best yet. RunError where the loss is no number."""
        point = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not math.isfinite(point["loss"]):
            raise RunError("Training diverged: the loss is not a number any more. Lower train.learning_rate.")
        self._curves.append({"epoch": trainer.current_epoch, **point, "seconds": round(self._clock.seconds, 2)})
        if trainer.is_global_zero:
            write_atomically(self._directory / CURVES, json.dumps(self._curves, indent=1) + "\n")
        ndcg = point.get(METRIC, math.nan)
        if ndcg <= self.best:
            return
        self.best = ndcg
        if trainer.is_global_zero:
            self._keep(module)

    def _keep(self, module: lightning.LightningModule) -> None:
        encoder: Encoder = module.encoder  # type: ignore[assignment]
        temporary = self._directory / f".{WEIGHTS}"
        save_file({name: tensor.contiguous() for name, tensor in encoder.plain_state().items()}, temporary)
        temporary.replace(self._directory / WEIGHTS)
        if isinstance(encoder.item, TextTower):
            encoder.item.projection().write(self._directory / ITEM_TEXT)


class ProgressReport(Callback):
    """Shows steps done, or seconds where these end training sooner, and the best validation yet."""

    def __init__(self, progress: Progress, clock: TrainingClock, weights: BestWeights, step_count: int) -> None:
        self._progress = progress
        self._clock = clock
        self._weights = weights
        self._step_count = step_count

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Show how far training is."""
        best = "" if math.isnan(self._weights.best) else f", best NDCG@10 {self._weights.best:.4f}"
        what = f"epoch {trainer.current_epoch + 1} of at most {trainer.max_epochs}{best}"
        seconds, limit, done = self._clock.seconds, self._clock.limit_seconds, trainer.global_step
        if seconds / limit > done / self._step_count:
            self._progress(f"{what}, seconds", round(seconds), round(limit))
        else:
            self._progress(f"{what}, steps", done, self._step_count)
