"""Lightning's trainer, set up for one training, and what surrounds its fit."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from training.config import TrainSettings
from training.errors import RunError
from training.fit.checkpoints import AtomicCheckpointIO
from training.fit.processes import Processes


def build_trainer(
    settings: TrainSettings,
    device: str,
    processes: Processes,
    callbacks: list[Callback],
    resumes: bool,
    logger: Logger | None,
) -> lightning.Trainer:
    """A trainer on `device`, `cpu` or `cuda`, that tells `logger` the curves. One that resumes needs no trial run."""
    data_parallel = DDPStrategy(
        process_group_backend="nccl" if device == "cuda" else "gloo",
        broadcast_buffers=False,
        timeout=timedelta(minutes=30),
    )
    return lightning.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=processes.local_count,
        num_nodes=processes.machine_count,
        strategy=data_parallel if processes.count > 1 else "auto",
        precision=precision_on(device),
        accumulate_grad_batches=settings.accumulate,
        max_epochs=settings.epochs,
        callbacks=callbacks,
        plugins=AtomicCheckpointIO(),
        logger=logger or False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0 if resumes else 2,
        use_distributed_sampler=False,
    )


def precision_on(device: str) -> Literal["bf16-mixed", "32-true"]:
    """bfloat16 where a GPU computes with it; weights, loss and validation stay float32."""
    return "bf16-mixed" if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


@contextmanager
def lost_processes_are_errors(processes: Processes) -> Iterator[None]:
    """RunError where another process ends: the connection breaks here, and torch's error does not say why."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
        if processes.count == 1 or not lost:
            raise
        raise RunError("Another process of this training ended; its message says why. --resume goes on.") from error


@contextmanager
def quiet_lightning() -> Iterator[None]:
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
