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


BLOCK_USERS = 1 << 15
"""Histories from which encoder batches are made at a time.

The last bits of an embedding depend on the other histories of its batch, so whole blocks, wherever they are embedded,
give what they give among all others.
"""


def embed(
    model_path: Path, features: Features, max_length: int, progress: Progress = no_progress
) -> NDArray[np.float32]:
    """The user embedding of each history's newest `max_length` events, (B, D); zeros for an empty history."""
    session = open_session(model_path)
    [output] = session.get_outputs()
    count = len(features.lengths)
    embeddings = np.zeros((count, output.shape[1]), np.float32)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, count, BLOCK_USERS):
            end = min(start + BLOCK_USERS, count)
            block = features if count <= BLOCK_USERS else _block(features, start, end)
            parts = batches(block, max_length)
            results = pool.map(lambda part: session.run([OUTPUT], part[1])[0], parts)
            done = end - sum(len(rows) for rows, _ in parts)
            for (rows, _), result in zip(parts, results, strict=True):
                embeddings[start + rows] = result
                done += len(rows)
                progress("embedding users", done, count)
    return embeddings


def _block(features: Features, start: int, end: int) -> Features:
    return features.slices(features.starts[start:end], features.ends[start:end])
