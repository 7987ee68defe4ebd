"""Fourth stage: writes the trained encoder as ONNX, and checks that ONNX Runtime computes the same as torch."""

import logging
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.core.features import GAP_COUNT, GAP_START, Inputs
from server.core.repository.layout import OUTPUT, PREPROCESSING, read_preprocessing
from training.errors import RunError
from training.model.encoder import Encoder
from training.model.onnx_inference import open_session
from training.model.quantized import GOLDEN_TOLERANCES, QuantizedEncoder
from training.model.text_projection import ITEM_TEXT
from training.model.user_encoder import UserEncoder
from training.model.weights import load_encoder
from training.runs import Progress, Run, no_progress, write_atomically

MODEL = "model.onnx"
ITEM_EMBEDDINGS = "item_embeddings.npy"

OPSET = 23
"""The first opset with attention as one operator."""

TOLERANCE = 1e-5
"""Largest difference allowed between torch and ONNX Runtime in any component of an embedding, as a share of the largest
component where that is above 1: rounding errors grow with the numbers."""

_NAMES = ("item_index", "action_index", "value", "gap_index")
_BATCH_SIZES = (1, 3, 32, 64)
_LENGTHS = (1, 2, 8, 13)


@dataclass(frozen=True)
class ExportResult:
    """The output directory, the largest difference to torch, and the time per user with 20 events."""

    directory: Path
    difference: float
    microseconds_per_user: float


def export(run: Run, progress: Progress = no_progress) -> ExportResult:
    """Write model, item embeddings and preprocessing. Raises RunError if ONNX Runtime differs from torch."""
    trained = run.require("train")
    with run.stage("export") as stage:
        steps = 3
        progress("exporting to ONNX", 0, steps)
        encoder = UserEncoder.load(load_encoder(trained), trained)
        model = stage.directory / MODEL
        write_onnx(encoder, model)
        progress("comparing with torch", 1, steps)
        difference = compare_with_torch(encoder, model)
        progress("measuring", 2, steps)
        speed = microseconds_per_user(encoder, model)
        np.save(stage.directory / ITEM_EMBEDDINGS, encoder.item_embeddings().detach().numpy(), allow_pickle=False)
        learned = read_preprocessing(run.path / "prepare")
        preprocessing = learned.model_copy(update={"max_length": encoder.shape.max_length})
        write_atomically(stage.directory / PREPROCESSING, preprocessing.model_dump_json(indent=2) + "\n")
        (stage.directory / ITEM_TEXT).unlink(missing_ok=True)
        if (trained / ITEM_TEXT).is_file():
            shutil.copyfile(trained / ITEM_TEXT, stage.directory / ITEM_TEXT)
        stage.figures |= {"largest_difference": difference, "microseconds_per_user": round(speed, 1)}
        stage.figures |= {"model_bytes": model.stat().st_size}
        if isinstance(encoder.encoder, QuantizedEncoder):
            stage.figures |= {"golden_tolerance": GOLDEN_TOLERANCES[encoder.encoder.precision]}
        progress("measuring", 3, steps)
    return ExportResult(stage.directory, difference, speed)


def write_onnx(encoder: Encoder | UserEncoder, path: Path) -> None:
    """Write and check the ONNX file, with dynamic batch size and length, and with the weights inside."""
    if isinstance(encoder, UserEncoder) and isinstance(encoder.encoder, QuantizedEncoder):
        encoder.encoder.write_onnx(path)
        return
    example = tuple(torch.from_numpy(array) for array in random_inputs(encoder, 3, 5, 0).values())
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own internals
        torch.onnx.export(
            encoder.eval(),
            example,
            str(path),
            input_names=list(_NAMES),
            output_names=[OUTPUT],
            dynamic_shapes=(axes,) * len(_NAMES),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    onnx.checker.check_model(str(path), full_check=True)


def compare_with_torch(encoder: Encoder | UserEncoder, path: Path) -> float:
    """Largest difference between torch and ONNX Runtime over batch sizes and lengths; RunError above `TOLERANCE`."""
    session = open_session(path)
    worst = 0.0
    for length in sorted({min(length, encoder.shape.max_length) for length in (*_LENGTHS, encoder.shape.max_length)}):
        for size in _BATCH_SIZES:
            inputs = random_inputs(encoder, size, length, seed=size * 1000 + length)
            embeddings = session.run([OUTPUT], inputs)[0]
            difference = float(np.abs(embeddings - torch_embeddings(encoder, inputs)).max())
            if not difference <= TOLERANCE * max(1.0, float(np.abs(embeddings).max())):
                raise RunError(f"{path} differs from torch by {difference:g} at batch {size}, length {length}.")
            worst = max(worst, difference)
    return worst


def torch_embeddings(encoder: Encoder | UserEncoder, inputs: Inputs) -> NDArray[np.float32]:
    """User embeddings (B, D) by torch."""
    with torch.inference_mode():
        embeddings: Tensor = encoder(*(torch.from_numpy(inputs[name]) for name in _NAMES))
    return embeddings.numpy()


def random_inputs(encoder: Encoder | UserEncoder, batch: int, length: int, seed: int) -> Inputs:
    """Inputs (batch, length) of histories of all lengths, from only padding to no padding."""
    rng = np.random.default_rng(seed)
    shape = (batch, length)
    starts = np.linspace(0, length, batch).round()[:, None]
    places = np.arange(length)
    inputs: Inputs = {
        "item_index": rng.integers(1, encoder.shape.item_count + 1, shape, np.int32),
        "action_index": rng.integers(1, encoder.shape.action_count + 1, shape, np.int32),
        "value": rng.normal(size=shape).astype(np.float32),
        "gap_index": rng.integers(1, GAP_COUNT, shape, np.int32),
    }
    inputs["gap_index"][places == starts] = GAP_START
    return {name: np.where(places < starts, array.dtype.type(0), array) for name, array in inputs.items()}


def microseconds_per_user(
    encoder: Encoder | UserEncoder, path: Path, batch: int = 32, length: int = 20, repeats: int = 20
) -> float:
    """Median time per user on one thread of ONNX Runtime, for histories of `length` events."""
    session = open_session(path)
    inputs = random_inputs(encoder, batch, min(length, encoder.shape.max_length), seed=0)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        session.run([OUTPUT], inputs)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)) / batch * 1e6
