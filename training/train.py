"""Second stage: trains the encoder to name each next item, and keeps the weights that validated best."""

import json
import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import polars as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from server.core.features import CHUNK_SIZE
from server.core.preprocessing import Preprocessing
from training.adam import LazyAdamW, clip_gradients
from training.checkpoints import AtomicCheckpoints, Checkpoints, ResumableLoader
from training.config import Train
from training.distil import Lesson, Teacher
from training.encoder import Encoder, EncoderShape
from training.errors import ConfigError, LogError, RunError
from training.fused import FUSION, read_fused
from training.item_tower import ItemTower
from training.loss import NextItemLoss, choose_negatives
from training.metrics import ndcg_each, target_ranks
from training.objectives import SlicedWindows, other_objectives, slices_of
from training.precision import LOWERED, LoweredEncoder
from training.runs import Progress, Run, Stage, no_progress, write_atomically
from training.sequences import (
    Batch,
    EpochPlan,
    Log,
    Parts,
    Validation,
    Windows,
    chosen,
    held_out,
    positive_actions,
    read_sequences,
    sampled,
    target_counts,
)
from training.text import ItemText, read_item_text
from training.text_projection import ITEM_TEXT
from training.world import World

WEIGHTS = "encoder.safetensors"
SHAPE = "encoder.json"
CHECKPOINT = "last.ckpt"
CURVES = "metrics.json"
METRIC = "ndcg@10"

_VALIDATION_USERS = 5000
_VALIDATION_SCORES = 2_000_000_000
"""Users times items of a validation: of a million items 2,000 users are asked, which takes a CPU some 15 seconds."""
_WARM_UP_STEPS = 100
_FINAL_RATE = 0.05
_BETAS = (0.9, 0.98)
_WEIGHT_DECAY = 0.01
_CLIP = 1.0

USUAL_DROPOUT, FEW_EVENTS_DROPOUT = 0.2, 0.5
FEW_EVENTS = 10
"""Mean events a user below which a log is short and sparse."""

LAZY_ITEMS = 50_000
"""On a CPU, larger catalogues have sparse gradients: there a step must not cost what the catalogue weighs."""

CHECKPOINT_MINUTES = 10
"""So much of a long epoch can be lost."""


@dataclass(frozen=True)
class TrainResult:
    """What `train` wrote under `directory`. `ndcg` is NDCG@10 on validation, NaN where nobody could validate."""

    directory: Path
    ndcg: float
    epochs: int
    device: str


class NextItemModule(lightning.LightningModule):
    """The encoder with its loss, optimiser and validation."""

    def __init__(self, encoder: Encoder, loss: NextItemLoss, settings: Train, plan: EpochPlan, clock: "_Clock") -> None:
        super().__init__()
        self.encoder = encoder
        self.loss = loss
        self.others = other_objectives(settings.objectives, encoder)
        self.teacher: Teacher | None = None
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
        """Mean loss of a batch, in nats, times its share of the step's targets; other objectives are added.

        Without weight the next item does not move the encoder: items learn to be told by embeddings as they are.
        """
        weights, slices = self._settings.objectives, slices_of(batch)
        targets, weight = batch.pop("target"), batch.pop("weight")
        with torch.set_grad_enabled(bool(weights.next_item or weights.feature_mse)):
            users = self.encoder.sequence(**batch)
        asked = targets > 0
        count = int(asked.sum())
        if not count:  # a mean over nothing is no number: one target that weighs nothing
            asked[0, -1] = True
        with torch.autocast(self.device.type, enabled=False):
            read = users if weights.next_item else users.detach()
            asking, rows, items = read[asked].float(), targets[asked].clamp(min=1) - 1, self.encoder.item_rows()
            loss: Tensor = self.loss(asking, rows, items)
            if self.teacher is not None:
                loss = self.teacher.mixed(loss, batch, asked, rows, asking, items)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=count)
        if self.others is None:
            return loss * weight
        loss = loss * weight * (weights.next_item or 1.0)
        for name, other in self.others(self.encoder, users, batch, slices).items():
            self.log(name, other, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(users))
            loss = loss + other * getattr(weights, name)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step, and the slow copy follows."""
        super().optimizer_step(*args, **kwargs)
        if self.others is not None:
            self.others.follow(self.encoder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the training is for."""
        checkpoint["objectives"] = self._settings.objectives.model_dump()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with a training that was for something else."""
        if checkpoint["objectives"] != self._settings.objectives.model_dump():
            raise RunError("The training that was cut off had other objectives; train again without resuming.")

    def on_validation_epoch_start(self) -> None:
        """Fuse ids and text once, not for each batch."""
        self._items = self.encoder.item_embeddings()
        self._gains = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._scores = torch.empty(CHUNK_SIZE, len(self._items), device=self.device)

    def validation_step(self, batch: Batch, _: int) -> None:
        """NDCG@10 with all items ranked, in float32."""
        targets, places, seen = (batch.pop(name) for name in ("target", "seen_place", "seen_row"))
        with torch.autocast(self.device.type, enabled=False):
            scores = torch.mm(self.encoder(**batch), self._items.T, out=self._scores[: len(targets)])
        scores[places, seen] = -torch.inf
        each = ndcg_each(target_ranks(scores, targets).cpu().numpy(), 10)
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
        if self.others is not None:
            others += [parameter for parameter in self.others.parameters() if parameter.requires_grad]
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


class _Clock:
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


class _Keeper(Callback):
    """Keeps the best weights and the curves on disk, tells progress, and ends training when its time is up.

    Time is up where another validation, as long as the last one, would end too late. The first one's time is told from
    a trial batch.
    """

    def __init__(
        self,
        directory: Path,
        progress: Progress,
        clock: _Clock,
        plan: EpochPlan,
        settings: Train,
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
        return self._clock.seconds

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "curves": self.curves, "clock": self._clock.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.curves = state_dict["best"], state_dict["curves"]
        self._clock.resume(state_dict["clock"])

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._clock.tick(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        best = "" if math.isnan(self.best) else f", best NDCG@10 {self.best:.4f}"
        what = f"epoch {trainer.current_epoch + 1} of at most {trainer.max_epochs}{best}"
        seconds, done = self._clock.seconds, trainer.global_step
        if seconds / self._allowed > done / self._steps:  # time is up before the epochs are
            self._progress(f"{what}, seconds", round(seconds), round(self._allowed))
        else:
            self._progress(f"{what}, steps", done, self._steps)
        batch_index: int = args[-1]
        step_is_whole = (batch_index + 1) % self._accumulate == 0
        if step_is_whole and seconds + self._clock.validation_seconds > self._allowed:
            trainer.should_stop = True

    def on_validation_start(self, *_: Any) -> None:
        self._clock.validation_begins()

    def on_validation_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            self._clock.validation_begins()

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            self._clock.validation_ends(of=self._validation_batches)

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._clock.validation_ends()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
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
        if isinstance(encoder.item, ItemTower):
            encoder.item.projection().write(self._directory / ITEM_TEXT)


@dataclass(frozen=True)
class _Job:
    """What a training needs to know."""

    directory: Path
    log: Log
    preprocessing: Preprocessing
    shape: EncoderShape
    settings: Train
    device: str
    text: ItemText | None
    world: World
    lesson: Lesson


def train(
    run: Run,
    *,
    settings: Train | None = None,
    resume: bool = False,
    lesson: Lesson | None = None,
    progress: Progress = no_progress,
) -> TrainResult:
    """Train on what `prepare` left, and write weights, shape, curves and a checkpoint an epoch.

    `settings` replace those of the run's configuration. With `resume` training goes on after the last whole epoch of
    a run that was cut off, or of `CHECKPOINT_MINUTES` inside an epoch, or starts where there is none. Under torchrun
    every process calls this; the first one writes. A derived run needs a `lesson`.
    Raises ConfigError, LogError and RunError.
    """
    clock, world = _Clock(), World.from_environment()
    prepared = run.require("prepare")
    settings = settings or run.config().train
    device = choose_device(settings.device)
    preprocessing = Preprocessing.model_validate_json((prepared / "preprocessing.json").read_bytes())
    whole = partial(run.stage, "train", deriving=lesson is not None)
    with whole() if world.is_first else nullcontext(Stage(run.path / "train")) as stage:
        progress("reading sequences", 0, 0)
        log = read_sequences(prepared, preprocessing)
        items = pl.scan_parquet(prepared / "items.parquet").select(pl.len()).collect().item()
        shape = _shape(items, preprocessing, settings)
        lesson = lesson or Lesson()
        if lesson.start:
            shape = lesson.start.shape
        text = None if lesson.start else read_item_text(prepared)
        job = _Job(stage.directory, log, preprocessing, shape, settings, device, text, world, lesson)
        result = _fit(job, resume, clock, progress if world.is_first else no_progress)
        stage.figures |= {"validation_ndcg@10": result.ndcg, "epochs": result.epochs, "device": world.of(device)}
        stage.figures |= {"negatives": _negatives(job), "dropout": _dropout(job), "max_length": shape.max_length}
    return result


def _shape(items: int, preprocessing: Preprocessing, settings: Train) -> EncoderShape:
    return EncoderShape(
        item_count=items,
        action_count=len(preprocessing.actions),
        max_length=preprocessing.max_length,
        embedding_dim=settings.embedding_dim,
        layers=settings.layers,
        heads=settings.heads,
        tied=settings.objectives.next_item > 0,
    )


def _negatives(job: _Job) -> int:
    """Negatives a batch, 0 for the full softmax."""
    return choose_negatives(job.shape.item_count) if job.settings.negatives is None else job.settings.negatives


def _dropout(job: _Job) -> float:
    return choose_dropout(job.log) if job.settings.dropout is None else job.settings.dropout


def choose_dropout(log: Log) -> float:
    """How much dropout suits a log: more where users have few events to learn from."""
    events = int((log.train_ends - log.features.offsets[:-1]).sum())
    return FEW_EVENTS_DROPOUT if events < FEW_EVENTS * len(log.users) else USUAL_DROPOUT


def _validation_users(job: _Job) -> int:
    return max(1, min(_VALIDATION_USERS, _VALIDATION_SCORES // job.shape.item_count))


def _fit(job: _Job, resume: bool, clock: _Clock, progress: Progress) -> TrainResult:
    settings, log, world = job.settings, job.log, job.world
    parts = Parts(world.rank, world.size, settings.accumulate)
    plan = EpochPlan(log, job.shape.max_length, settings.batch_size, settings.seed, parts)
    if not plan.steps:
        raise LogError("No user has two events to learn from; the log needs longer histories.")
    if world.is_first:
        _clear(job, resume)
    torch.manual_seed(settings.seed)
    counts = target_counts(log, job.shape.item_count)
    encoder = Encoder(job.shape, _dropout(job))
    if job.text:
        encoder.use_text(job.text, counts)
    encoder.start_from_popularity(counts)
    if job.lesson.start:
        encoder.load_state_dict(job.lesson.start.state_dict())
    if job.device == "cpu" and job.shape.item_count >= LAZY_ITEMS:
        encoder.use_sparse_gradients()
    if job.device == "cuda":
        encoder.compile_blocks()
    loss = NextItemLoss(counts, _negatives(job))
    module = NextItemModule(encoder, loss, settings, plan, clock)
    module.teacher = Teacher(job.lesson.teacher) if job.lesson.teacher else None
    held = sampled(held_out(log, 2, positive_actions(job.preprocessing)), _validation_users(job), settings.seed)
    validates = len(held.rows) > 0
    if len(held.rows) >= world.size:  # with fewer everyone validates all: the mean is the same
        held = chosen(held, np.arange(world.rank, len(held.rows), world.size))
    sliced = settings.objectives.contrastive > 0
    windows = SlicedWindows(log, job.preprocessing, settings.seed) if sliced else Windows(log, job.preprocessing)
    batches = ResumableLoader(windows, plan)
    validation = DataLoader(Validation(log, held, job.preprocessing), batch_size=None) if validates else None
    keeper = _Keeper(job.directory, progress, clock, plan, settings, len(validation) if validation else 0)
    checkpoint = job.directory / CHECKPOINT
    with _quiet(), _together(world):
        going_on = resume and checkpoint.is_file()
        trainer = _trainer(job, keeper, validates, going_on)
        trainer.fit(module, batches, validation, ckpt_path=str(checkpoint) if going_on else None, weights_only=True)
    return TrainResult(job.directory, keeper.best, trainer.current_epoch, job.device)


@contextmanager
def _together(world: World) -> Iterator[None]:
    """A process that ends breaks the talk of the others, which cannot know why."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
        if world.size == 1 or not lost:
            raise
        raise RunError("Another process of this training ended; what it said tells why. --resume goes on.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's hints: about workers that these loaders need not have, and its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _clear(job: _Job, resume: bool) -> None:
    """Note the shape and drop what an earlier training left, unless this one goes on from there."""
    path = job.directory / SHAPE
    text = json.dumps(asdict(job.shape), indent=2) + "\n"
    if resume and path.is_file() and path.read_text(encoding="utf-8") != text:
        raise RunError(f"{job.directory} holds a training of another shape; train again without resuming.")
    if not resume:
        for name in (CHECKPOINT, WEIGHTS, CURVES, ITEM_TEXT):
            (job.directory / name).unlink(missing_ok=True)
    write_atomically(path, text)


def _trainer(job: _Job, keeper: _Keeper, validates: bool, going_on: bool) -> lightning.Trainer:
    callbacks: list[Callback] = [keeper]
    if validates:
        callbacks.append(EarlyStopping(METRIC, mode="max", patience=job.settings.patience, check_finite=False))
    checkpoints = Checkpoints(job.directory / CHECKPOINT, keeper.seconds, CHECKPOINT_MINUTES)
    several = DDPStrategy(
        process_group_backend="nccl" if job.device == "cuda" else "gloo",
        broadcast_buffers=False,
        timeout=timedelta(minutes=30),
    )
    return lightning.Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu",
        devices=job.world.local_size,
        num_nodes=job.world.machines,
        strategy=several if job.world.size > 1 else "auto",
        precision=precision_on(job.device),
        accumulate_grad_batches=job.settings.accumulate,
        max_epochs=job.settings.epochs,
        callbacks=[*callbacks, checkpoints],
        plugins=AtomicCheckpoints(),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0 if going_on else 2,
        use_distributed_sampler=False,
    )


def precision_on(device: str) -> Literal["bf16-mixed", "32-true"]:
    """bfloat16 where a GPU computes with it; weights, loss and validation stay float32."""
    return "bf16-mixed" if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def choose_device(name: str) -> str:
    """`cpu` or `cuda`; `auto` takes CUDA where torch can use it. Raises ConfigError for a device that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"train.device is `{name}`; it can be auto, cpu or cuda.")
    usable = torch.cuda.is_available()
    if name == "cuda" and not usable:
        raise ConfigError("train.device is cuda, but torch finds no usable NVIDIA GPU; set it to auto or cpu.")
    return "cuda" if usable and name != "cpu" else "cpu"


def load_encoder(trained: Path) -> Encoder:
    """The encoder with its best weights, for inference on the CPU; of a derived run, what it was made into."""
    if (trained / FUSION).is_file():
        return read_fused(trained, load_encoder)
    if (trained / LOWERED).is_file():
        return LoweredEncoder(trained)
    if not (trained / WEIGHTS).is_file():
        raise RunError(f"{trained} has no {WEIGHTS}; run `segrec-train train` first.")
    encoder = Encoder(EncoderShape(**json.loads((trained / SHAPE).read_bytes())))
    encoder.load_state_dict(load_file(trained / WEIGHTS))
    return encoder.eval()
