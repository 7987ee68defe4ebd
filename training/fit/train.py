"""Second stage: trains the encoder to name each next item, and keeps the weights that validated best."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Literal

import lightning
import numpy as np
import polars as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from server.core.preprocessing import Preprocessing
from server.core.repository.layout import read_preprocessing
from training.config import TrainSettings
from training.data.item_text import ItemText, read_item_text
from training.data.sequences import EventLog, chosen, held_out, positive_actions, read_sequences, sampled
from training.errors import ConfigError, LogError, RunError
from training.fit.batching import EpochPlan, StepShards, Validation, Windows, target_counts
from training.fit.callbacks import METRIC, BestWeights, Clock
from training.fit.checkpoints import AtomicCheckpoints, Checkpoints, ResumableLoader
from training.fit.distillation import Lesson, Teacher
from training.fit.distributed import World
from training.fit.lightning_module import NextItemModule
from training.fit.objectives import SlicedWindows
from training.model.category_tower import ItemCategories, read_item_categories
from training.model.encoder import Encoder, EncoderShape
from training.model.loss import NextItemLoss, choose_negatives
from training.model.text_projection import ITEM_TEXT
from training.model.user_encoder import SEGMENT_EMBEDDING, SegmentEmbedding
from training.model.weights import SHAPE, WEIGHTS, load_encoder
from training.runs import CURVES, Progress, Run, Stage, no_progress, write_atomically

CHECKPOINT = "last.ckpt"

_VALIDATION_USERS = 5000
_VALIDATION_SCORES = 2_000_000_000
"""Users times items of a validation: of a million items 2,000 users are asked, which takes a CPU some 15 seconds."""
USUAL_DROPOUT, FEW_EVENTS_DROPOUT = 0.2, 0.5
FEW_EVENTS = 10
"""Mean events a user below which a log is short and sparse."""

FEW_EVENTS_AN_ITEM = 15
"""Mean events an item below which a catalogue is so sparse that categories tell more than ids alone."""

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


@dataclass(frozen=True)
class _TrainingJob:
    """What a training needs to know."""

    directory: Path
    log: EventLog
    preprocessing: Preprocessing
    shape: EncoderShape
    settings: TrainSettings
    device: str
    text: ItemText | None
    categories: ItemCategories | None
    world: World
    lesson: Lesson


def train(
    run: Run,
    *,
    settings: TrainSettings | None = None,
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
    clock, world = Clock(), World.from_environment()
    prepared = run.require("prepare")
    settings = settings or run.config().train
    device = choose_device(settings.device)
    preprocessing = read_preprocessing(prepared)
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
        wanted = choose_categories(log, items) if settings.categories is None else settings.categories
        categories = None if lesson.start or text or not wanted else read_item_categories(prepared)
        job = _TrainingJob(
            stage.directory, log, preprocessing, shape, settings, device, text, categories, world, lesson
        )
        result = _fit(job, resume, clock, progress if world.is_first else no_progress)
        if world.is_first:
            progress("what segments are made of", 0, 0)
            encoder = load_encoder(stage.directory)
            SegmentEmbedding.fit(encoder, log, preprocessing, settings.seed).write(stage.directory)
        stage.figures |= {"validation_ndcg@10": result.ndcg, "epochs": result.epochs, "device": world.of(device)}
        stage.figures |= {"negatives": _negatives(job), "dropout": _dropout(job), "max_length": shape.max_length}
        stage.figures |= {"categories": categories.count if categories else 0}
    return result


def _shape(items: int, preprocessing: Preprocessing, settings: TrainSettings) -> EncoderShape:
    return EncoderShape(
        item_count=items,
        action_count=len(preprocessing.actions),
        max_length=preprocessing.max_length,
        embedding_dim=settings.embedding_dim,
        layers=settings.layers,
        heads=settings.heads,
        tied=settings.objectives.next_item > 0,
    )


def _negatives(job: _TrainingJob) -> int:
    """Negatives a batch, 0 for the full softmax."""
    return choose_negatives(job.shape.item_count) if job.settings.negatives is None else job.settings.negatives


def _dropout(job: _TrainingJob) -> float:
    return choose_dropout(job.log) if job.settings.dropout is None else job.settings.dropout


def choose_dropout(log: EventLog) -> float:
    """How much dropout suits a log: more where users have few events to learn from."""
    events = int((log.train_ends - log.features.offsets[:-1]).sum())
    return FEW_EVENTS_DROPOUT if events < FEW_EVENTS * len(log.users) else USUAL_DROPOUT


def choose_categories(log: EventLog, item_count: int) -> bool:
    """Whether items share vectors of their categories: where they have few events to be told by themselves."""
    events = int((log.train_ends - log.features.offsets[:-1]).sum())
    return events < FEW_EVENTS_AN_ITEM * item_count


def _validation_users(job: _TrainingJob) -> int:
    return max(1, min(_VALIDATION_USERS, _VALIDATION_SCORES // job.shape.item_count))


def _fit(job: _TrainingJob, resume: bool, clock: Clock, progress: Progress) -> TrainResult:
    settings, log, world = job.settings, job.log, job.world
    parts = StepShards(world.rank, world.size, settings.accumulate)
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
    if job.categories:
        encoder.use_categories(job.categories)
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
    keeper = BestWeights(job.directory, progress, clock, plan, settings, len(validation) if validation else 0)
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


def _clear(job: _TrainingJob, resume: bool) -> None:
    """Note the shape and drop what an earlier training left, unless this one goes on from there."""
    path = job.directory / SHAPE
    text = json.dumps(asdict(job.shape), indent=2) + "\n"
    if resume and path.is_file() and path.read_text(encoding="utf-8") != text:
        raise RunError(f"{job.directory} holds a training of another shape; train again without resuming.")
    if not resume:
        for name in (CHECKPOINT, WEIGHTS, CURVES, ITEM_TEXT, SEGMENT_EMBEDDING):
            (job.directory / name).unlink(missing_ok=True)
    write_atomically(path, text)


def _trainer(job: _TrainingJob, keeper: BestWeights, validates: bool, going_on: bool) -> lightning.Trainer:
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
