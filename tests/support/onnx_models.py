"""Small ONNX encoders with the inputs and the output of a release, for tests that need one without training."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

ITEM_COUNT = 1000
ACTION_COUNT = 8
GAP_COUNT = 16
DTYPES = {"item_index": np.int32, "action_index": np.int32, "value": np.float32, "gap_index": np.int32}


def random_inputs(batch: int, length: int, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Inputs of shape (batch, length) each, with indexes that every model of this file knows."""
    rng = np.random.default_rng(seed)
    shape = (batch, length)
    return {
        "item_index": rng.integers(0, ITEM_COUNT, shape).astype(np.int32),
        "action_index": rng.integers(0, ACTION_COUNT, shape).astype(np.int32),
        "value": rng.normal(size=shape).astype(np.float32),
        "gap_index": rng.integers(0, GAP_COUNT, shape).astype(np.int32),
    }


def write_tiny_encoder(path: Path, *, dim: int = 8, seed: int = 0) -> Path:
    """Write a model that sums three looked-up rows a position, times the value, over the history.

    An index out of range makes its call fail inside ONNX Runtime. Models of different seeds give different
    embeddings.
    """
    rng = np.random.default_rng(seed)
    tables = {"item": ITEM_COUNT, "action": ACTION_COUNT, "gap": GAP_COUNT}
    weights = [
        numpy_helper.from_array(rng.normal(size=(rows, dim)).astype(np.float32) / 8, f"{name}_table")
        for name, rows in tables.items()
    ]
    nodes = [helper.make_node("Gather", [f"{name}_table", f"{name}_index"], [f"{name}_rows"]) for name in tables]
    nodes += [
        helper.make_node("Sum", [f"{name}_rows" for name in tables], ["rows"]),
        helper.make_node("Unsqueeze", ["value", "last_axis"], ["value_column"]),
        helper.make_node("Mul", ["rows", "value_column"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "length_axis"], ["user_embedding"], keepdims=0),
    ]
    weights += [
        numpy_helper.from_array(np.array([axis]), name) for axis, name in ((2, "last_axis"), (1, "length_axis"))
    ]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["batch", "length"])
        for name, dtype in DTYPES.items()
    ]
    output = helper.make_tensor_value_info("user_embedding", TensorProto.FLOAT, ["batch", dim])
    graph = helper.make_graph(nodes, "tiny_encoder", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path
