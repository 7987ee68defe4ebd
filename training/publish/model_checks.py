"""Checks of an encoder's ONNX file before it is published; they run inside `training.publish.sandbox`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from server.core.features import Features, Inputs, batches
from server.core.preprocessing import Preprocessing
from server.core.release import Golden
from server.core.repository.layout import OUTPUT
from training.model.drawn_histories import draw_histories
from training.model.onnx_inference import embed, open_session

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains of the operators that ONNX Runtime and Triton's backend include; other domains need extra libraries."""

_BATCH_SIZES = (1, 3, 32)
_LARGEST_VALUE = 8.0


def check_model(
    model: Path, golden: Golden, preprocessing: Preprocessing, item_count: int
) -> dict[str, NDArray[np.generic]]:
    """Check a model's file, then run the model on golden and on random histories; returns scalars ().

    `golden`: largest difference from the golden embeddings. `random`: number of random histories. `alone`: largest
    difference between a history's embeddings in a batch and in a batch of one. Raises ValueError for a bad model.
    """
    _check_file(model)
    onnx.checker.check_model(str(model))
    session = open_session(model)
    parity = golden.difference(session.run([OUTPUT], golden.inputs())[0])
    width = len(golden.user_embedding[0])
    count, alone = _embed_random_histories(session, preprocessing, item_count, width)
    return {"golden": np.array(parity), "random": np.array(count), "alone": np.array(alone)}


def embed_users(model: Path, features: Features, max_length: int) -> dict[str, NDArray[np.generic]]:
    """`users`: the embeddings (B, D) of histories."""
    return {"users": embed(model, features, max_length)}


def _check_file(model: Path) -> None:
    """Raises ValueError for weights in other files, and for operators of unknown domains."""
    proto = onnx.load(str(model), load_external_data=False)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(proto)):
        raise ValueError("it keeps weights in another file; export the model and its weights as one file")
    functions = {(function.domain, function.name) for function in proto.functions}
    for node in _nodes(proto):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in functions:
            raise ValueError(f"it uses the operator {node.op_type} of {node.domain}, which Triton does not have")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and, recursively, the graphs in the attributes of its nodes."""
    yield graph
    for node in graph.node:
        yield from _subgraphs(node)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            if graph.node or graph.initializer:
                yield from _graphs(graph)


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(proto.graph):
        yield from graph.node
    for function in proto.functions:
        for node in function.node:
            yield node
            for graph in _subgraphs(node):
                yield from graph.node


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(proto):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from graph.initializer


def _embed_random_histories(
    session: onnxruntime.InferenceSession, preprocessing: Preprocessing, item_count: int, width: int
) -> tuple[int, float]:
    """Embed random histories in batches of several sizes, and the first history of each batch alone.

    Returns the number of histories, and the largest difference between both embeddings of a history.
    """
    features = draw_histories(_lengths(preprocessing.max_length), preprocessing, item_count, _LARGEST_VALUE)
    largest, count = 0.0, 0
    for size in _BATCH_SIZES:
        for rows, inputs in batches(features, preprocessing.max_length, size):
            together = _run(session, inputs, width)
            count += len(rows)
            alone = _run(session, {name: column[:1] for name, column in inputs.items()}, width)
            largest = max(largest, float(np.abs(alone[0] - together[0]).max()))
    return count, largest


def _run(session: onnxruntime.InferenceSession, inputs: Inputs, width: int) -> NDArray[np.float32]:
    """Embeddings (B, `width`). Raises ValueError for another shape, and for numbers that are not finite."""
    embeddings: NDArray[np.float32] = session.run([OUTPUT], inputs)[0]
    users, length = inputs["item_index"].shape
    batch = f"for {users} histories of {length} events"
    if embeddings.shape != (users, width):
        raise ValueError(f"it gives an output of shape {embeddings.shape} {batch}; {(users, width)} is right")
    if not np.isfinite(embeddings).all():
        raise ValueError(f"it gives numbers that are not finite {batch}")
    return embeddings


def _lengths(max_length: int) -> list[int]:
    """Many lengths, in events, each eight times, ascending."""
    lengths = sorted({1, 2, 3, 7, max_length // 2, max_length - 1, max_length})
    return [length for length in lengths if 1 <= length <= max_length for _ in range(8)]
