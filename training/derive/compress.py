"""Compression: makes smaller or faster runs from a run and measures them against it.

`int8` and `fp16` change the number format of the exported graph. `pruned` removes the weakest feed-forward units and
continues training. `student` is a new encoder of half the size that learns from the run's scores. Each result is a run
that can be segmented and published.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table

from server.core.features import Inputs
from server.core.figures import figures_of
from server.core.repository.layout import OUTPUT, read_preprocessing
from training.config import TrainSettings
from training.errors import ConfigError, RunError
from training.evaluation.evaluate import encoder_scorer, evaluate, protocols, rank_targets
from training.fit.train import train
from training.metrics import bootstrap_interval, ndcg_each
from training.model.encoder import Encoder
from training.model.ensemble import FusedEncoder
from training.model.export import ITEM_EMBEDDINGS, MODEL, export, random_inputs
from training.model.onnx_inference import open_session
from training.model.pruning import pruned
from training.model.quantized import QuantizedEncoder, write_quantized
from training.model.user_encoder import UserEncoder
from training.model.weights import load_encoder
from training.runs import Progress, Run, no_progress, training_seconds, write_atomically

Way = Literal["int8", "fp16", "pruned", "student"]
WAYS: tuple[Way, ...] = get_args(Way)

FINE_TUNING_EPOCHS = 5
FINE_TUNING_RATE = 0.3
"""Learning rate of pruned encoders, as a share of the run's learning rate."""

NOISE = 0.03
"""Sizes and times that are smaller by less than this share are not a gain."""

_BATCH, _LENGTH, _REPEATS = 32, 20, 60


@dataclass(frozen=True)
class QualityDifference:
    """A figure, its difference from the original's figure, and the difference's 95 % interval (paired bootstrap)."""

    value: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class EncoderFigures:
    """One encoder: sizes in bytes, processor time in microseconds per user (in a batch, and alone), and quality."""

    way: str
    run: str
    model_bytes: int
    item_bytes: int
    microseconds: float
    microseconds_alone: float
    ndcg: QualityDifference
    hr: QualityDifference
    verdict: str


@dataclass(frozen=True)
class CompressResult:
    """The figures of the original, then of the compressed runs; also in `metrics.json` in `directory`."""

    directory: Path
    rows: tuple[EncoderFigures, ...]

    def table(self) -> RenderableType:
        """A table of the rows, and a sentence on what each compressed run gains."""
        table = Table("method", title=f"Compression: ONNX Runtime, one thread, {_LENGTH} events per user")
        for heading in ("encoder KB", "items KB", "µs per user", "µs alone", "NDCG@10", "to the original", "HR@10"):
            table.add_column(heading, justify="right")
        table.add_column("to the original", justify="right")
        for row in self.rows:
            sizes = (f"{row.model_bytes / 1000:,.0f}", f"{row.item_bytes / 1000:,.0f}")
            times = (f"{row.microseconds:.1f}", f"{row.microseconds_alone:.0f}")
            quality = (_cells(row.ndcg, row is self.rows[0]), _cells(row.hr, row is self.rows[0]))
            table.add_row(row.way, *sizes, *times, *quality[0], *quality[1])
        return Group(table, *(f"{row.way} ({row.run}): {row.verdict}." for row in self.rows[1:]))


def _cells(figure: QualityDifference, is_original: bool) -> tuple[str, str]:
    if is_original:
        return f"{figure.value:.4f}", ""
    return f"{figure.value:.4f}", f"{figure.difference:+.4f} ({figure.low:+.4f}…{figure.high:+.4f})"


def compress(
    run: Run, only: Sequence[str] = WAYS, max_minutes: float | None = None, progress: Progress = no_progress
) -> CompressResult:
    """Make a run by each method in `only` and measure all of them; writes `metrics.json` under `compress/` of the run.

    Pruned encoders and students train for at most `max_minutes`, or as long as the run itself did. Raises ConfigError
    for an unknown method, RunError if a stage is missing or the run cannot be compressed by a method.
    """
    encoder = load_encoder(run.require("train"))
    ways = _ways(run, encoder, only)
    run.require("export")
    with run.stage("compress") as stage:
        variants: dict[str, Run] = {}
        for way in ways:
            variants[way] = _make(run, encoder, way, max_minutes, _prefixed(progress, way))
        rows = _measure(run, variants, progress)
        text = json.dumps([asdict(row) for row in rows], indent=1)
        write_atomically(stage.directory / "metrics.json", text + "\n")
        for row in rows:
            stage.quality += figures_of("compressed", row.way, {"ndcg@10": row.ndcg.value, "hr@10": row.hr.value})
        stage.figures |= {"microseconds": {row.way: row.microseconds for row in rows}}
        stage.figures |= {"made": len(variants), "runs": {way: variant.path.name for way, variant in variants.items()}}
    return CompressResult(stage.directory, rows)


def _ways(run: Run, encoder: Encoder, only: Sequence[str]) -> tuple[Way, ...]:
    unknown = set(only) - set(WAYS)
    if unknown or not only:
        raise ConfigError(f"--only takes {', '.join(WAYS)}, separated by commas, not `{','.join(sorted(unknown))}`.")
    if isinstance(encoder, QuantizedEncoder):
        raise RunError(f"{run.path} is {encoder.precision} already; compress the run that it was made from.")
    ways = tuple(way for way in WAYS if way in only)
    if isinstance(encoder, FusedEncoder) and "pruned" in ways:
        if set(only) != set(WAYS):
            raise RunError(f"{run.path} is fused, so it cannot be pruned; prune its members, then fuse them.")
        ways = tuple(way for way in ways if way != "pruned")
    return ways


def _make(run: Run, encoder: Encoder, way: Way, max_minutes: float | None, progress: Progress) -> Run:
    """A derived run: trained or quantized, then exported and evaluated. A failure removes the run."""
    variant = run.derive(way)
    try:
        if way == "int8" or way == "fp16":
            with variant.stage("train", deriving=True) as stage:
                progress("writing", 0, 0)
                max_length = UserEncoder.load(encoder, run.require("train")).shape.max_length
                write_quantized(encoder, max_length, run.path / "export" / MODEL, way, stage.directory)
                stage.figures |= {"training_seconds": training_seconds(run)}
        else:
            settings = _train_settings(run, encoder, way, max_minutes or training_seconds(run) / 60)
            start, teacher = (pruned(encoder), None) if way == "pruned" else (None, encoder)
            variant.describe(run.config().model_copy(update={"train": settings}), run.record()["data"])
            train(variant, settings=settings, start=start, teacher=teacher, progress=progress)
        export(variant, progress=progress)
        evaluate(variant, progress=progress)
    except BaseException:
        shutil.rmtree(variant.path)
        raise
    return variant


def _train_settings(run: Run, encoder: Encoder, way: Way, minutes: float) -> TrainSettings:
    settings = run.config().train.model_copy(update={"max_minutes": minutes})
    if way == "pruned":
        rate, epochs = settings.learning_rate * FINE_TUNING_RATE, min(settings.epochs, FINE_TUNING_EPOCHS)
        return settings.model_copy(update={"learning_rate": rate, "epochs": epochs})
    return settings.model_copy(update={**student_shape(encoder, settings.heads), "feature_mse": 0.0})


def student_shape(encoder: Encoder, heads: int) -> dict[str, int]:
    """Half the dimensions and half the layers of an encoder, or of the largest member of a fused encoder."""
    shape = encoder.shape
    if isinstance(encoder, FusedEncoder):
        shape = max((member.shape for member in encoder.encoders), key=lambda shape: shape.embedding_dim)
    dim = max(1, shape.embedding_dim // 2 // heads) * heads
    return {"embedding_dim": dim, "layers": max(1, shape.layers // 2)}


def _measure(run: Run, variants: Mapping[str, Run], progress: Progress) -> tuple[EncoderFigures, ...]:
    runs = {"original": run, **variants}
    progress("speed", 0, 0)
    encoder = load_encoder(run.require("train"))
    length = min(_LENGTH, encoder.shape.max_length)
    batch, alone = (random_inputs(encoder, rows, length, seed=0) for rows in (_BATCH, 1))
    models = {way: variant.require("export") / MODEL for way, variant in runs.items()}
    times = processor_microseconds(models, batch), processor_microseconds(models, alone)
    ranks: dict[str, NDArray[np.int64]] = {}
    for way, variant in runs.items():
        progress(f"quality: {way}", len(ranks), len(runs))
        ranks[way] = ranks_on_test(variant)
    rows: list[EncoderFigures] = []
    for way, variant in runs.items():
        ndcg = difference(ndcg_each(ranks[way], 10), ndcg_each(ranks["original"], 10))
        hr = difference((ranks[way] < 10).astype(np.float64), (ranks["original"] < 10).astype(np.float64))
        sizes = models[way].stat().st_size, (variant.path / "export" / ITEM_EMBEDDINGS).stat().st_size
        row = EncoderFigures(way, variant.path.name, *sizes, times[0][way], times[1][way], ndcg, hr, "")
        rows.append(row if not rows else way_in_words(row, rows[0]))
    return tuple(rows)


def ranks_on_test(run: Run) -> NDArray[np.int64]:
    """Ranks of the test targets (T,) by the last protocol of `evaluate`, under which releases serve."""
    prepared, encoder = run.require("prepare"), load_encoder(run.require("train"))
    preprocessing = read_preprocessing(prepared)
    *_, protocol = protocols(prepared, preprocessing, encoder.shape.item_count)
    ranks, _ = rank_targets(encoder_scorer(encoder, protocol.log, protocol.held), protocol)
    return ranks


def difference(each: NDArray[np.float64], original: NDArray[np.float64]) -> QualityDifference:
    """The mean of `each` (T,) compared with the mean of `original` (T,), paired by user."""
    low, high = bootstrap_interval(each - original, seed=0)
    return QualityDifference(float(each.mean()), float((each - original).mean()), low, high)


def processor_microseconds(models: Mapping[str, Path], inputs: Inputs) -> dict[str, float]:
    """Median processor time of ONNX Runtime per user, on one thread, in microseconds.

    The models take turns, so that all have the same noise. Only the time of this thread is measured, so other processes
    have little influence.
    """
    sessions = {name: open_session(path) for name, path in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(_REPEATS):
        for name, session in sessions.items():
            start = time.thread_time()
            session.run([OUTPUT], inputs)
            seconds[name].append(time.thread_time() - start)
    rows = len(inputs["item_index"])
    return {name: float(np.median(taken)) / rows * 1e6 for name, taken in seconds.items()}


def way_in_words(row: EncoderFigures, original: EncoderFigures) -> EncoderFigures:
    """The row with its verdict: gains and losses in size, speed and quality."""
    size = (row.model_bytes + row.item_bytes) / (original.model_bytes + original.item_bytes)
    time_share = row.microseconds / original.microseconds
    smaller = f"{1 / size:.1f} × smaller" if size < 1 - NOISE else "not smaller"
    faster = f"{1 / time_share:.1f} × faster" if time_share < 1 - NOISE else "not faster on this processor"
    if row.way == "fp16" and time_share >= 1 - NOISE:
        faster += " (fp16 is made for GPUs)"
    if row.ndcg.low > 0:
        quality = "ranks better"
    elif row.ndcg.high < 0:
        quality = "ranks worse"
    else:
        quality = "no significant difference in NDCG@10"
    gains = size < 1 - NOISE or time_share < 1 - NOISE
    return replace(row, verdict=f"{smaller}, {faster}; {quality}" + ("" if gains else ": it gains nothing here"))


def _prefixed(progress: Progress, way: str) -> Progress:
    def report(what: str, done: int, total: int) -> None:
        progress(f"{way}: {what}", done, total)

    return report
