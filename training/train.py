"""Second stage: trains the encoder to name each next item, and keeps the weights that validated best."""

import json
import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import polars as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from server.core.preprocessing import Preprocessing
from training.config import Train
from training.encoder import Encoder, EncoderShape
from training.errors import ConfigError, LogError, RunError
from training.loss import NextItemLoss, choose_negatives
from training.metrics import ndcg_each, target_ranks
from training.runs import Progress, Run, no_progress, write_atomically
from training.sequences import (
    Batch,
    EpochPlan,
    Log,
    Validation,
    Windows,
    held_out,
    positive_actions,
    read_sequences,
    sampled,
    target_counts,
)

WEIGHTS = "encoder.safetensors"
SHAPE = "encoder.json"
CHECKPOINT = "last.ckpt"
CURVES = "metrics.json"
METRIC = "ndcg@10"

_VALIDATION_USERS = 5000
_WARM_UP_STEPS = 100
_FINAL_RATE = 0.05
_BETAS = (0.9, 0.98)
_WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class TrainResult:
    """What `train` wrote under `directory`. `ndcg` is NDCG@10 on validation, NaN where nobody could validate."""

    directory: Path
    ndcg: float
    epochs: int
    device: str


class NextItemModule(lightning.LightningModule):
    """The encoder with its loss, optimiser and validation."""

    def __init__(self, encoder: Encoder, loss: NextItemLoss, settings: Train, step_count: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.loss = loss
        self._settings = settings
        self._step_count = step_count
        self._started = time.monotonic()

    def on_train_batch_start(self, _: Batch, batch_index: int) -> None:
        """Seed by epoch, once the loaders have drawn theirs, so that a resumed run draws what an unbroken one would."""
        if batch_index == 0:
            torch.manual_seed(self._settings.seed * 100_003 + self.current_epoch)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Mean loss of a batch, in nats."""
        targets = batch.pop("target")
        users = self.encoder.sequence(**batch)
        asked = targets > 0
        loss: Tensor = self.loss(users[asked], targets[asked] - 1, self.encoder.item_embeddings())
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=int(asked.sum()))
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """NDCG@10 with all items ranked."""
        targets, places, seen = (batch.pop(name) for name in ("target", "seen_place", "seen_row"))
        scores = self.encoder(**batch) @ self.encoder.item_embeddings().T
        scores[places, seen] = -torch.inf
        each = ndcg_each(target_ranks(scores, targets).cpu().numpy(), 10)
        self.log(METRIC, float(each.mean()), on_epoch=True, batch_size=len(each))

    def configure_optimizers(self) -> Any:
        """AdamW; the rate warms up, then falls as a cosine over steps or minutes, whichever end is nearer."""
        decayed = [p for name, p in self.encoder.named_parameters() if name.startswith("blocks") and p.ndim > 1]
        others = [p for name, p in self.encoder.named_parameters() if not (name.startswith("blocks") and p.ndim > 1)]
        groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        rate = self._settings.learning_rate
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=_BETAS, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Share of the peak rate at `step`."""
        done = step / self._step_count
        if self._settings.max_minutes:
            done = max(done, (time.monotonic() - self._started) / 60 / self._settings.max_minutes)
        warm = min(1.0, (step + 1) / min(_WARM_UP_STEPS, max(self._step_count // 10, 1)))
        return warm * (_FINAL_RATE + (1 - _FINAL_RATE) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


class _Keeper(Callback):
    """Keeps the best weights and the curves on disk, tells progress, and ends training when its time is up."""

    def __init__(self, directory: Path, progress: Progress, max_minutes: float | None) -> None:
        self.best = math.nan
        self.curves: list[dict[str, float]] = []
        self._directory = directory
        self._progress = progress
        self._started = time.monotonic()
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "curves": self.curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.curves = state_dict["best"], state_dict["curves"]

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        epochs = int(trainer.max_epochs or 1)
        steps = int(trainer.num_training_batches) * epochs
        best = "" if math.isnan(self.best) else f", best NDCG@10 {self.best:.4f}"
        what = f"epoch {trainer.current_epoch + 1} of at most {epochs}{best}"
        now = time.monotonic()
        seconds, allowed = now - self._started, self._deadline - self._started
        if seconds / allowed > trainer.global_step / steps:  # time is up before the epochs are
            self._progress(f"{what}, seconds", round(seconds), round(allowed))
        else:
            self._progress(f"{what}, steps", trainer.global_step, steps)
        if now > self._deadline:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        point = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not math.isfinite(point["loss"]):
            raise RunError("Training diverged: the loss is not a number any more. Lower train.learning_rate.")
        seconds = time.monotonic() - self._started
        self.curves.append({"epoch": trainer.current_epoch, **point, "seconds": round(seconds, 2)})
        write_atomically(self._directory / CURVES, json.dumps(self.curves, indent=1) + "\n")
        self._offer(module, point.get(METRIC, math.nan))

    def _offer(self, module: lightning.LightningModule, ndcg: float) -> None:
        """Keep the weights, unless earlier ones were as good."""
        if ndcg <= self.best:
            return
        self.best = ndcg
        encoder: Encoder = module.encoder  # type: ignore[assignment]
        temporary = self._directory / f".{WEIGHTS}"
        save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, temporary)
        temporary.replace(self._directory / WEIGHTS)


@dataclass(frozen=True)
class _Job:
    """What a training needs to know."""

    directory: Path
    log: Log
    preprocessing: Preprocessing
    shape: EncoderShape
    settings: Train
    device: str


def train(
    run: Run, *, settings: Train | None = None, resume: bool = False, progress: Progress = no_progress
) -> TrainResult:
    """Train on what `prepare` left, and write weights, shape, curves and a checkpoint an epoch.

    `settings` replace those of the run's configuration. With `resume` training goes on after the last whole epoch of
    a run that was cut off, or starts where there is none. Raises ConfigError, LogError and RunError.
    """
    prepared = run.require("prepare")
    settings = settings or run.config().train
    device = choose_device(settings.device)
    preprocessing = Preprocessing.model_validate_json((prepared / "preprocessing.json").read_bytes())
    with run.stage("train") as stage:
        progress("reading sequences", 0, 0)
        log = read_sequences(prepared, preprocessing)
        items = pl.scan_parquet(prepared / "items.parquet").select(pl.len()).collect().item()
        shape = _shape(items, preprocessing, settings)
        job = _Job(stage.directory, log, preprocessing, shape, settings, device)
        result = _fit(job, resume, progress)
        stage.figures |= {"validation_ndcg@10": result.ndcg, "epochs": result.epochs, "device": device}
        stage.figures |= {"negatives": _negatives(job), "max_length": shape.max_length}
    return result


def _shape(items: int, preprocessing: Preprocessing, settings: Train) -> EncoderShape:
    return EncoderShape(
        item_count=items,
        action_count=len(preprocessing.actions),
        max_length=preprocessing.max_length,
        embedding_dim=settings.embedding_dim,
        layers=settings.layers,
        heads=settings.heads,
    )


def _negatives(job: _Job) -> int:
    """Negatives a batch, 0 for the full softmax."""
    return choose_negatives(job.shape.item_count) if job.settings.negatives is None else job.settings.negatives


def _fit(job: _Job, resume: bool, progress: Progress) -> TrainResult:
    settings, log = job.settings, job.log
    plan = EpochPlan(log, job.shape.max_length, settings.batch_size, settings.seed)
    if not len(plan):
        raise LogError("No user has two events to learn from; the log needs longer histories.")
    _clear(job, resume)
    torch.manual_seed(settings.seed)
    counts = target_counts(log, job.shape.item_count)
    encoder = Encoder(job.shape, settings.dropout)
    encoder.start_from_popularity(counts)
    loss = NextItemLoss(counts, _negatives(job))
    module = NextItemModule(encoder, loss, settings, len(plan) * settings.epochs)
    held = sampled(held_out(log, 2, positive_actions(job.preprocessing)), _VALIDATION_USERS, settings.seed)
    batches = DataLoader(Windows(log, job.preprocessing), sampler=plan, batch_size=None)
    validation = DataLoader(Validation(log, held, job.preprocessing), batch_size=None) if len(held.rows) else None
    keeper = _Keeper(job.directory, progress, settings.max_minutes)
    checkpoint = job.directory / CHECKPOINT
    with _quiet():
        trainer = _trainer(job, keeper, validates=validation is not None)
        going_on = str(checkpoint) if checkpoint.is_file() else None
        trainer.fit(module, batches, validation, ckpt_path=going_on, weights_only=True)
    return TrainResult(job.directory, keeper.best, trainer.current_epoch, job.device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's hints: about workers that these loaders need not have, and its own deprecations."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)


def _clear(job: _Job, resume: bool) -> None:
    """Note the shape and drop what an earlier training left, unless this one goes on from there."""
    path = job.directory / SHAPE
    text = json.dumps(asdict(job.shape), indent=2) + "\n"
    if resume and path.is_file() and path.read_text(encoding="utf-8") != text:
        raise RunError(f"{job.directory} holds a training of another shape; train again without resuming.")
    if not resume:
        for name in (CHECKPOINT, WEIGHTS, CURVES):
            (job.directory / name).unlink(missing_ok=True)
    write_atomically(path, text)


def _trainer(job: _Job, keeper: _Keeper, validates: bool) -> lightning.Trainer:
    callbacks: list[Callback] = [keeper]
    if validates:
        callbacks.append(EarlyStopping(METRIC, mode="max", patience=job.settings.patience, check_finite=False))
    checkpoints = ModelCheckpoint(job.directory, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    return lightning.Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu",
        devices=1,
        max_epochs=job.settings.epochs,
        gradient_clip_val=1.0,
        callbacks=[*callbacks, checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def choose_device(name: str) -> str:
    """`cpu` or `cuda`; `auto` takes CUDA where torch can use it. Raises ConfigError for a device that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"train.device is `{name}`; it can be auto, cpu or cuda.")
    usable = torch.cuda.is_available()
    if name == "cuda" and not usable:
        raise ConfigError("train.device is cuda, but torch finds no usable NVIDIA GPU; set it to auto or cpu.")
    return "cuda" if usable and name != "cpu" else "cpu"


def load_encoder(trained: Path) -> Encoder:
    """The encoder with its best weights, for inference on the CPU."""
    if not (trained / WEIGHTS).is_file():
        raise RunError(f"{trained} has no {WEIGHTS}; run `segrec-train train` first.")
    encoder = Encoder(EncoderShape(**json.loads((trained / SHAPE).read_bytes())))
    encoder.load_state_dict(load_file(trained / WEIGHTS))
    return encoder.eval()
