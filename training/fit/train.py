"""Second stage: trains the encoder to name each next item, and keeps the weights that validated best."""

import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import polars as pl
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor
from torch.utils.data import DataLoader

from server.core.figures import ENCODER, VALIDATION, figures_of
from server.core.preprocessing import Preprocessing
from server.core.repository.layout import read_preprocessing
from training.config import TrainSettings
from training.data.sequences import EventLog, read_sequences
from training.errors import RunError
from training.fit.batching import Batch, Windows, target_counts
from training.fit.callbacks import METRIC, BestWeights, ProgressReport, TrainingClock
from training.fit.checkpoints import CHECKPOINT, checkpoint_callbacks
from training.fit.defaults import ChosenSettings, choose_device
from training.fit.lightning_module import NextItemModule
from training.fit.loaders import TrainingLoader, plan_epochs, validation_loader
from training.fit.new_encoder import adapt_to_device, copy_of, new_encoder
from training.fit.processes import Processes
from training.fit.trainer import build_trainer, lost_processes_are_errors, quiet_lightning
from training.model.category_tower import CategoryTower
from training.model.encoder import Encoder, EncoderShape
from training.model.loss import NextItemLoss
from training.model.text_projection import ITEM_TEXT
from training.model.user_encoder import SEGMENT_EMBEDDING, SegmentEmbedding
from training.model.weights import SHAPE, WEIGHTS, load_encoder
from training.runs import CURVES, Progress, Run, Stage, no_progress, write_atomically
from training.tracking import Tracking


@dataclass(frozen=True)
class TrainResult:
    """What `train` wrote under `directory`. `ndcg` is NDCG@10 on validation, NaN where nobody could validate."""

    directory: Path
    ndcg: float
    epochs: int
    device: str


@dataclass(frozen=True)
class _PreparedLog:
    """What `prepare` left. `event_counts` (V,) says how often training sees each item."""

    log: EventLog
    preprocessing: Preprocessing
    item_count: int
    event_counts: Tensor

    @classmethod
    def read(cls, prepared: Path, preprocessing: Preprocessing) -> Self:
        log = read_sequences(prepared, preprocessing)
        item_count = pl.scan_parquet(prepared / "items.parquet").select(pl.len()).collect().item()
        return cls(log, preprocessing, item_count, target_counts(log, item_count))


def train(
    run: Run,
    *,
    settings: TrainSettings | None = None,
    resume: bool = False,
    start: Encoder | None = None,
    teacher: Encoder | None = None,
    watchers: Sequence[Callback] = (),
    progress: Progress = no_progress,
) -> TrainResult:
    """Train on what `prepare` left, and write weights, shape, curves and checkpoints.

    `settings` replace those of the run's configuration. With `resume` a training that was cut off goes on from its
    last checkpoint: of the last whole epoch, or of `CHECKPOINT_MINUTES` inside an epoch; without a checkpoint it
    begins. A derived run trains on from the weights of `start`, or learns the scores of `teacher` too. `watchers`
    are called after the callbacks of the training itself. Under torchrun every process calls this; the first one
    writes. Raises ConfigError, LogError and RunError.
    """
    prepared = run.require("prepare")
    settings = settings or run.config().train
    clock, processes = TrainingClock(settings.max_minutes), Processes.from_environment()
    device = choose_device(settings.device)
    preprocessing = read_preprocessing(prepared)
    progress = progress if processes.is_first else no_progress
    with _stage(run, processes, derived=start is not None or teacher is not None) as stage:
        progress("reading sequences", 0, 0)
        data = _PreparedLog.read(prepared, preprocessing)
        chosen = ChosenSettings.choose(settings, data.log, data.item_count)

        torch.manual_seed(settings.seed)
        if start is None:
            encoder = new_encoder(prepared, settings, chosen, data.preprocessing, data.event_counts)
        else:
            encoder = copy_of(start, chosen.dropout)
        adapt_to_device(encoder, device)

        plan = plan_epochs(data.log, encoder.shape.max_length, settings, processes)
        batches = TrainingLoader(Windows(data.log, data.preprocessing, settings.seed), plan)
        validation = validation_loader(data.log, data.preprocessing, data.item_count, settings.seed, processes)

        checkpoint = _checkpoint(stage.directory, encoder.shape, resume, processes)
        loss = NextItemLoss(data.event_counts, chosen.negatives)
        module = NextItemModule(encoder, loss, settings, plan, clock, teacher)
        weights = BestWeights(stage.directory, clock)
        report = ProgressReport(progress, clock, weights, plan.steps * settings.epochs)
        callbacks = [report, clock, weights, *_patience(settings, validation), *checkpoint_callbacks(stage.directory)]
        callbacks += watchers
        with quiet_lightning(), lost_processes_are_errors(processes):
            logger = Tracking(run).logger() if processes.is_first else None
            trainer = build_trainer(settings, device, processes, callbacks, checkpoint is not None, logger)
            trainer.fit(module, batches, validation, ckpt_path=checkpoint, weights_only=True)

        if processes.is_first:
            progress("fitting the segment embedding", 0, 0)
            best = load_encoder(stage.directory)
            SegmentEmbedding.fit(best, data.log, data.preprocessing, settings.seed).write(stage.directory)
        result = TrainResult(stage.directory, weights.best, trainer.current_epoch, device)
        stage.figures |= _figures(result, encoder, chosen, processes) | {"stopped": why_stopped(trainer, clock)}
        if not math.isnan(result.ndcg):
            stage.quality += figures_of(VALIDATION, ENCODER, {METRIC: result.ndcg})
    return result


def why_stopped(trainer: Trainer, clock: TrainingClock) -> str:
    """`time`, `early_stopping` (validation did not improve any more), `epochs`, or `callback` for anything else."""
    if clock.is_up:
        return "time"
    if trainer.early_stopping_callback is not None and trainer.early_stopping_callback.stopped_epoch:
        return "early_stopping"
    return "epochs" if trainer.current_epoch == trainer.max_epochs else "callback"


def _stage(run: Run, processes: Processes, derived: bool) -> AbstractContextManager[Stage]:
    """The stage, which the first process notes in the run's record."""
    if processes.is_first:
        return run.stage("train", deriving=derived)
    return nullcontext(Stage(run.path / "train"))


def _patience(settings: TrainSettings, validation: DataLoader[Batch] | None) -> list[Callback]:
    """Early stopping, where users validate."""
    if validation is None:
        return []
    return [EarlyStopping(METRIC, mode="max", patience=settings.patience, check_finite=False)]


def _checkpoint(directory: Path, shape: EncoderShape, resume: bool, processes: Processes) -> Path | None:
    """The checkpoint to go on from, if any; without `resume` the first process deletes an earlier training."""
    path = directory / CHECKPOINT
    if processes.is_first:
        _check_shape(directory / SHAPE, shape, resume)
        if not resume:
            for name in (CHECKPOINT, WEIGHTS, CURVES, ITEM_TEXT, SEGMENT_EMBEDDING):
                (directory / name).unlink(missing_ok=True)
    return path if resume and path.is_file() else None


def _check_shape(path: Path, shape: EncoderShape, resume: bool) -> None:
    """Write the shape. Raises RunError where a training of another shape would be resumed."""
    text = json.dumps(asdict(shape), indent=2) + "\n"
    if resume and path.is_file() and path.read_text(encoding="utf-8") != text:
        raise RunError(f"{path.parent} holds a training of another shape; train again without resuming.")
    write_atomically(path, text)


def _figures(
    result: TrainResult, encoder: Encoder, chosen: ChosenSettings, processes: Processes
) -> dict[str, float | int | str]:
    return {
        "epochs": result.epochs,
        "device": processes.describe(result.device),
        "negatives": chosen.negatives,
        "dropout": chosen.dropout,
        "max_length": encoder.shape.max_length,
        "categories": encoder.item.category_count if isinstance(encoder.item, CategoryTower) else 0,
    }
