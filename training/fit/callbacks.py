"""Watches a training: its time, its curves, its best weights, and what people are told of it."""

import json
import math
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file

from training.config import TrainSettings
from training.errors import RunError
from training.fit.batching import EpochPlan
from training.model.encoder import Encoder
from training.model.text_projection import ITEM_TEXT
from training.model.text_tower import TextTower
from training.model.weights import WEIGHTS
from training.runs import CURVES, Progress, write_atomically

METRIC = "ndcg@10"

_VALIDATION_SHARE = 0.25
"""Of the time allowed at most so much is kept for the last validation: a pessimistic guess must not end training."""


class Clock:
    """Seconds spent on a training, those before it was cut off included, and the same for all its processes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.validation_seconds = 0.0
        self._before = 0.0
        self._started = time.monotonic()
        self._validation_started = 0.0

    def state(self) -> dict[str, float]:
        """What `resume` counts on from."""
        return {"seconds": self.seconds, "validation_seconds": self.validation_seconds}

    def resume(self, state: dict[str, float]) -> None:
        """Count on from there, beside what this process has spent."""
        self._before = self.seconds = state["seconds"]
        self.validation_seconds = state["validation_seconds"]

    def validation_begins(self) -> None:
        """A validation begins, or a part of it."""
        self._validation_started = time.monotonic()

    def validation_ends(self, of: int = 1) -> None:
        """It ends; `of` so many parts."""
        self.validation_seconds = of * (time.monotonic() - self._validation_started)

    def tick(self, trainer: lightning.Trainer) -> None:
        """Set `seconds` to now, and both times to those of the slowest process."""
        self.seconds = self._before + time.monotonic() - self._started
        if trainer.world_size > 1:
            times = torch.tensor([self.seconds, self.validation_seconds], device=trainer.strategy.root_device)
            self.seconds, self.validation_seconds = trainer.strategy.reduce(times, reduce_op="max").tolist()


class BestWeights(Callback):
    """Keeps the best weights and the curves on disk, tells progress, and ends training when its time is up.

    Time is up where another validation, as long as the last one, would end too late. The first one's time is told from
    a trial batch.
    """

    def __init__(
        self,
        directory: Path,
        progress: Progress,
        clock: Clock,
        plan: EpochPlan,
        settings: TrainSettings,
        validation_batches: int,
    ) -> None:
        self.best = math.nan
        self.curves: list[dict[str, float]] = []
        self._directory = directory
        self._progress = progress
        self._clock = clock
        self._steps = plan.steps * settings.epochs
        self._accumulate = plan.parts.accumulate
        self._validation_batches = validation_batches
        self._allowed = 60 * settings.max_minutes if settings.max_minutes else math.inf

    def seconds(self) -> float:
        """Time spent on this training."""
        return self._clock.seconds

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self.best, "curves": self.curves, "clock": self._clock.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best, self.curves = state_dict["best"], state_dict["curves"]
        self._clock.resume(state_dict["clock"])

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Look at the clock."""
        self._clock.tick(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Tell progress; end training where its time is up."""
        best = "" if math.isnan(self.best) else f", best NDCG@10 {self.best:.4f}"
        what = f"epoch {trainer.current_epoch + 1} of at most {trainer.max_epochs}{best}"
        seconds, done = self._clock.seconds, trainer.global_step
        if seconds / self._allowed > done / self._steps:  # time is up before the epochs are
            self._progress(f"{what}, seconds", round(seconds), round(self._allowed))
        else:
            self._progress(f"{what}, steps", done, self._steps)
        batch_index: int = args[-1]
        step_is_whole = (batch_index + 1) % self._accumulate == 0
        reserved = min(self._clock.validation_seconds, _VALIDATION_SHARE * self._allowed)
        if step_is_whole and seconds + reserved > self._allowed:
            trainer.should_stop = True

    def on_validation_start(self, *_: Any) -> None:
        """Time a validation."""
        self._clock.validation_begins()

    def on_validation_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Time the trial batch."""
        if trainer.sanity_checking:
            self._clock.validation_begins()

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Guess a validation's time from the trial batch."""
        if trainer.sanity_checking:
            self._clock.validation_ends(of=self._validation_batches)

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Its time is known."""
        if not trainer.sanity_checking:
            self._clock.validation_ends()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Add to the curves, keep the weights where they are the best yet. RunError where the loss is no number."""
        point = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not math.isfinite(point["loss"]):
            raise RunError("Training diverged: the loss is not a number any more. Lower train.learning_rate.")
        self._clock.tick(trainer)
        self.curves.append({"epoch": trainer.current_epoch, **point, "seconds": round(self._clock.seconds, 2)})
        if trainer.is_global_zero:
            write_atomically(self._directory / CURVES, json.dumps(self.curves, indent=1) + "\n")
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
