"""What an encoder has to show before it is published; runs in a process of its own, see `training.publish.sandbox`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from server.core.features import GAP_COUNT, Features, Inputs, batches
from server.core.preprocessing import Preprocessing
from server.core.ragged import offsets_of
from server.core.release import Golden
from server.core.repository.layout import OUTPUT
from training.model.onnx_inference import embed, open_session

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operators that ONNX Runtime and Triton's backend bring with them; any other needs a library of its own."""

_BATCH_SIZES = (1, 3, 32)
_LARGEST_VALUE = 8.0


def prove(model: Path, golden: Golden, preprocessing: Preprocessing, item_count: int) -> dict[str, NDArray[np.generic]]:
    """Check a model's file, then run it.

    `golden` (): largest difference to the golden embeddings. `random` (): how many random histories were embedded.
    `alone` (): largest difference of one to its embedding in a batch. Raises ValueError with what is wrong.
    """
    _check_file(model)
    onnx.checker.check_model(str(model))
    session = open_session(model)
    parity = golden.difference(session.run([OUTPUT], golden.inputs())[0])
    width = len(golden.user_embedding[0])
    count, alone = _tried(session, preprocessing, item_count, width)
    return {"golden": np.array(parity), "random": np.array(count), "alone": np.array(alone)}


def embedded(model: Path, features: Features, max_length: int) -> dict[str, NDArray[np.generic]]:
    """`users`: the embedding of each history, (B, D)."""
    return {"users": embed(model, features, max_length)}


def _check_file(model: Path) -> None:
    """Raises ValueError for weights in other files, and for operators that need a library."""
    proto = onnx.load(str(model), load_external_data=False)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(proto)):
        raise ValueError("it keeps weights in another file; export it in one")
    own = {(function.domain, function.name) for function in proto.functions}
    for node in _nodes(proto):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            raise ValueError(f"it uses the operator {node.op_type} of {node.domain}, which Triton does not have")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and those in the attributes of its nodes."""
    yield graph
    for node in graph.node:
        yield from _inner(node)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
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
            for graph in _inner(node):
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


def _tried(
    session: onnxruntime.InferenceSession, preprocessing: Preprocessing, item_count: int, width: int
) -> tuple[int, float]:
    """Embed random histories of all lengths in batches of several sizes, and some of them once more alone."""
    features = _random(preprocessing, item_count)
    most, count = 0.0, 0
    for size in _BATCH_SIZES:
        for rows, inputs in batches(features, preprocessing.max_length, size):
            found = _run(session, inputs, width)
            count += len(rows)
            alone = _run(session, {name: column[:1] for name, column in inputs.items()}, width)
            most = max(most, float(np.abs(alone[0] - found[0]).max()))
    return count, most


def _run(session: onnxruntime.InferenceSession, inputs: Inputs, width: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = session.run([OUTPUT], inputs)[0]
    users, length = inputs["item_index"].shape
    what = f"of {users} histories of {length} events"
    if found.shape != (users, width):
        raise ValueError(f"it gives an output of shape {found.shape} {what}; {(users, width)} is right")
    if not np.isfinite(found).all():
        raise ValueError(f"it gives numbers that are not finite {what}")
    return found


def _random(preprocessing: Preprocessing, item_count: int) -> Features:
    """Seeded histories of one event up to the most, on all items and actions, with values far out."""
    rng = np.random.default_rng(0)
    lengths = _lengths(preprocessing.max_length)
    count = int(lengths.sum())
    return Features(
        item_index=rng.integers(1, item_count + 1, count).astype(np.int32),
        action_index=rng.integers(1, len(preprocessing.actions) + 1, count).astype(np.int32),
        value=rng.uniform(-_LARGEST_VALUE, _LARGEST_VALUE, count).astype(np.float32),
        gap_index=rng.integers(1, GAP_COUNT, count).astype(np.int32),
        offsets=offsets_of(lengths),
        ignored=np.zeros(len(lengths), np.int32),
    )


def _lengths(max_length: int) -> NDArray[np.int64]:
    told: Sequence[int] = sorted({1, 2, 3, 7, max_length // 2, max_length - 1, max_length})
    return np.repeat([length for length in told if 1 <= length <= max_length], 8)
