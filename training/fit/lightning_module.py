"""What Lightning trains: the encoder with its losses, its optimiser and its validation."""

import math
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from server.core.features import CHUNK_SIZE
from training.config import TrainSettings
from training.errors import RunError
from training.fit.batching import Batch, EpochPlan
from training.fit.callbacks import METRIC, TrainingClock
from training.fit.distillation import Distillation
from training.fit.feature_mse import FeatureMSE
from training.fit.optimizer import LazyAdamW, clip_gradients
from training.metrics import ndcg_each, target_ranks
from training.model.encoder import Encoder
from training.model.loss import NextItemLoss

_WARM_UP_STEPS = 100
_FINAL_RATE = 0.05
_BETAS = (0.9, 0.98)
_WEIGHT_DECAY = 0.01
_CLIP = 1.0


class NextItemModule(lightning.LightningModule):
    """The encoder with its loss, optimiser and validation."""

    def __init__(
        self,
        encoder: Encoder,
        loss: NextItemLoss,
        settings: TrainSettings,
        plan: EpochPlan,
        clock: TrainingClock,
        teacher: Encoder | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.loss = loss
        self.feature_mse = FeatureMSE(encoder) if settings.feature_mse else None
        self.distillation = None if teacher is None else Distillation(teacher)
        self._settings = settings
        self._plan = plan
        self._step_count = plan.steps * settings.epochs
        self._clock = clock

    def on_train_batch_start(self, _: Batch, batch_index: int) -> None:
        """Seed each part of each step, and the negatives alike in all parts of a step.

        So a resumed run draws what an unbroken one would, and a step is the same however it is cut.
        """
        parts, seed = self._plan.parts, self._settings.seed
        step = self.current_epoch * self._plan.steps + batch_index // parts.accumulate
        torch.manual_seed(_mixed(seed, step, 1 + parts.part(batch_index)))
        self.loss.seed(_mixed(seed, step, 0))

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Mean loss of a batch, in nats, times its share of the step's targets; the weighted feature loss is added."""
        targets, weight = batch.pop("target"), batch.pop("weight")
        users = self.encoder.sequence(**batch)
        has_target = targets > 0
        count = int(has_target.sum())
        if not count:  # a mean over nothing is no number: one target that weighs nothing
            has_target[0, -1] = True
        with torch.autocast(self.device.type, enabled=False):
            queries, rows = users[has_target].float(), targets[has_target].clamp(min=1) - 1
            items = self.encoder.item_rows()
            loss: Tensor = self.loss(queries, rows, items)
            if self.distillation is not None:
                loss = self.distillation.mixed(loss, batch, has_target, rows, queries, items)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=count)
        loss = loss * weight
        if self.feature_mse is not None:
            error = self.feature_mse(users, batch)
            self.log("feature_mse", error, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(users))
            loss = loss + error * self._settings.feature_mse
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step; the slow copy of the feature loss follows."""
        super().optimizer_step(*args, **kwargs)
        if self.feature_mse is not None:
            self.feature_mse.follow(self.encoder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the loss is made of, and how items are represented."""
        checkpoint["feature_mse"] = self._settings.feature_mse
        checkpoint["items"] = type(self.encoder.item).__name__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with a training of another loss, or with other representations of items."""
        if checkpoint["feature_mse"] != self._settings.feature_mse:
            raise RunError("The training that was cut off had another feature_mse; train again without resuming.")
        if checkpoint["items"] != type(self.encoder.item).__name__:
            raise RunError("The training that was cut off had other text or categories; train again without resuming.")

    def on_validation_epoch_start(self) -> None:
        """Fuse ids and text once, not for each batch."""
        self._items = self.encoder.item_embeddings()
        self._gains = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._scores = torch.empty(CHUNK_SIZE, len(self._items), device=self.device)

    def validation_step(self, batch: Batch, _: int) -> None:
        """NDCG@10 with all items ranked, in float32."""
        users, targets, places, seen = (batch.pop(name) for name in ("place", "target", "seen_place", "seen_row"))
        with torch.autocast(self.device.type, enabled=False):
            embeddings = self.encoder(**batch)
            scores = torch.mm(embeddings, self._items.T, out=self._scores[: len(embeddings)])
        scores[places, seen] = -torch.inf
        # A user of a log with visits has several targets; not more scores at once than for one target a user.
        chunks = [slice(start, start + CHUNK_SIZE) for start in range(0, len(targets), CHUNK_SIZE)]
        ranks = [target_ranks(scores[users[chunk]], targets[chunk]) for chunk in chunks]
        each = ndcg_each(torch.cat(ranks).cpu().numpy(), 10)
        self._gains += self._gains.new_tensor([each.sum(), len(each)])

    def on_validation_epoch_end(self) -> None:
        """The mean over the users of all processes."""
        total, users = self.trainer.strategy.reduce(self._gains, reduce_op="sum")
        self.log(METRIC, total / users)
        del self._items, self._scores

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Lightning's own refuses fused optimisers under bf16, and cannot clip sparse gradients."""
        clip_gradients((parameter for group in optimizer.param_groups for parameter in group["params"]), _CLIP)

    def configure_optimizers(self) -> Any:
        """AdamW; the rate warms up, then falls as a cosine over steps or minutes, whichever end is nearer."""
        decayed = [p for name, p in self.encoder.named_parameters() if name.startswith("blocks") and p.ndim > 1]
        others = [p for name, p in self.encoder.named_parameters() if not (name.startswith("blocks") and p.ndim > 1)]
        if self.feature_mse is not None:
            others += self.feature_mse.head.parameters()
        groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        rate = self._settings.learning_rate
        optimizer = LazyAdamW(groups, lr=rate, betas=_BETAS, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Share of the peak rate at `step`."""
        done = step / self._step_count
        if self._settings.max_minutes:
            done = max(done, self._clock.seconds / 60 / self._settings.max_minutes)
        warm = min(1.0, (step + 1) / min(_WARM_UP_STEPS, max(self._step_count // 10, 1)))
        return warm * (_FINAL_RATE + (1 - _FINAL_RATE) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


def _mixed(*numbers: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
