"""User embeddings by ONNX Runtime, with the same session options as the server."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from server.core.features import Features, batches
from server.core.repository.layout import OUTPUT
from training.runs import Progress, no_progress


def open_session(model_path: Path) -> onnxruntime.InferenceSession:
    """A session that computes on the calling thread; several threads may use it at the same time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])


def embed(
    model_path: Path, features: Features, max_length: int, progress: Progress = no_progress
) -> NDArray[np.float32]:
    """The user embedding of each history's newest `max_length` events, (B, D); zeros for an empty history."""
    session = open_session(model_path)
    [output] = session.get_outputs()
    embeddings = np.zeros((len(features.lengths), output.shape[1]), np.float32)
    parts = batches(features, max_length)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = pool.map(lambda part: session.run([OUTPUT], part[1])[0], parts)
        for done, ((rows, _), result) in enumerate(zip(parts, results, strict=True), 1):
            embeddings[rows] = result
            progress("embedding users", done, len(parts))
    return embeddings
