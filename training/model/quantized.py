"""The encoder in int8 and fp16: the exported graph in lower precision, with the same inputs and output.

int8 is for weights only. The item table has one scale per row, other matrices have one scale per 32 weights (ONNX
Runtime's MatMulNBits); all sums are in float32. int8 activations are not used, because an embedding would depend on
more than its history. With scales from the batch (dynamic), users of a batch affect each other. With fixed scales
(static), a different rounding of the last bit, by another padding or processor, becomes a whole quantization step, far
above the tolerance of golden embeddings.

fp16 is for GPUs: all numbers except inputs and output, which stay float32.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from server.core.release import GOLDEN_TOLERANCE
from server.core.repository.layout import OUTPUT
from training.errors import RunError
from training.model.encoder import Encoder, EncoderShape
from training.model.onnx_inference import open_session

Precision = Literal["int8", "fp16"]

QUANTIZED = "precision.json"
"""File that marks a run as quantized, and holds its precision."""

GOLDEN_TOLERANCES: dict[Precision, float] = {"int8": GOLDEN_TOLERANCE, "fp16": 2e-2}
"""Largest allowed difference to a golden embedding; a GPU computes in fp16, a CPU in float32."""

_MODEL, _ITEMS, _SHAPE = "model.onnx", "item_embeddings.npy", "encoder.json"
_BLOCK = 32
_WEIGHTS_MIN = 1024
"""Matrices with fewer weights stay float32, since they need little space."""


class QuantizedEncoder(Encoder):
    """An encoder that runs its graph with ONNX Runtime; it only gives embeddings of whole histories.

    `shape.max_length` is the number of events that the graph reads, the bag of items included.
    """

    def __init__(self, directory: Path) -> None:
        """Read what `write_quantized` wrote."""
        nn.Module.__init__(self)
        self.directory = directory
        self.precision: Precision = json.loads((directory / QUANTIZED).read_bytes())["precision"]
        self.shape = EncoderShape.read(directory / _SHAPE)
        self._items = torch.from_numpy(np.load(directory / _ITEMS, allow_pickle=False))
        self._session = open_session(directory / _MODEL)

    def forward(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        """User embeddings (B, D)."""
        return self.whole(item_index, action_index, value, gap_index)[:, : self.shape.embedding_dim]

    def whole(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        """The whole output of the graph, (B, D + F + D + S): user embedding, then segment embedding."""
        columns = (item_index, action_index, value, gap_index)
        inputs = {entry.name: column.numpy() for entry, column in zip(self._session.get_inputs(), columns, strict=True)}
        return torch.from_numpy(self._session.run([OUTPUT], inputs)[0])

    def sequence(self, *_: Tensor) -> Tensor:
        """Not available: the graph gives only the last position. Raises RunError."""
        raise RunError(f"{self.directory} is {self.precision}, which embeds whole histories only; use its parent run.")

    def item_embeddings(self) -> Tensor:
        """Row r belongs to item index r + 1, (V, D)."""
        return self._items

    def write_onnx(self, path: Path) -> None:
        """Copy the graph."""
        shutil.copyfile(self.directory / _MODEL, path)


def write_quantized(encoder: Encoder, max_length: int, model: Path, precision: Precision, directory: Path) -> None:
    """Write the files of a `QuantizedEncoder`; `model` is the graph of `encoder`, which reads `max_length` events."""
    graph = onnx.load(str(model))
    lowered = to_int8(graph, encoder.shape.item_count) if precision == "int8" else to_fp16(graph)
    onnx.checker.check_model(lowered)
    onnx.save(lowered, str(directory / _MODEL))
    np.save(directory / _ITEMS, encoder.item_embeddings().detach().numpy(), allow_pickle=False)
    shape = replace(encoder.shape, max_length=max_length)
    (directory / _SHAPE).write_text(json.dumps(asdict(shape), indent=2) + "\n", encoding="utf-8")
    (directory / QUANTIZED).write_text(json.dumps({"precision": precision}) + "\n", encoding="utf-8")


def to_int8(model: onnx.ModelProto, item_count: int) -> onnx.ModelProto:
    """The model with int8 weights: its item tables, of `item_count` + 1 rows, and its matrices."""
    with _quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    _quantize_tables(model.graph, weights, item_count + 1)
    small_nodes = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and np.prod(weights[node.input[1]].dims, initial=1) < _WEIGHTS_MIN
        if node.input[1] in weights
    ]
    with _quiet():
        quantizer = MatMulNBitsQuantizer(
            model,
            bits=8,
            block_size=_BLOCK,
            is_symmetric=True,
            op_types_to_quantize=("MatMul",),
            nodes_to_exclude=small_nodes,
        )
        quantizer.process()
    lowered: onnx.ModelProto = quantizer.model.model
    return lowered


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in half precision, with inputs and output in float32."""
    with _quiet():
        from onnxruntime.quantization.onnx_model import ONNXModel
        from onnxruntime.transformers.float16 import convert_float_to_float16

        lowered = ONNXModel(convert_float_to_float16(model, keep_io_types=True))
    lowered.topological_sort()
    half: onnx.ModelProto = lowered.model
    return half


def _quantize_tables(graph: onnx.GraphProto, weights: dict[str, onnx.TensorProto], rows: int) -> None:
    """Replace look-ups in float32 item tables by look-ups in int8 tables and a scale per row."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        table = weights.get(node.input[0]) if node.op_type == "Gather" else None
        is_float = table is not None and table.data_type == onnx.TensorProto.FLOAT
        if table is None or not is_float or len(table.dims) != 2 or table.dims[0] != rows:
            nodes.append(node)
            continue
        integers, scales = _int8_rows(numpy_helper.to_array(table))
        name, output = table.name, node.output[0]
        if table in graph.initializer:
            graph.initializer.remove(table)
            graph.initializer.append(numpy_helper.from_array(integers, f"{name}_int8"))
            graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scale"))
        nodes += [
            helper.make_node("Gather", [f"{name}_int8", node.input[1]], [f"{output}_int8"]),
            helper.make_node("Cast", [f"{output}_int8"], [f"{output}_whole"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}_scale", node.input[1]], [f"{output}_scale"]),
            helper.make_node("Mul", [f"{output}_whole", f"{output}_scale"], [output]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def _int8_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A table (V, D) as integers in ±127, and a scale per row, (V, 1)."""
    scales = np.maximum(np.abs(table).max(1, keepdims=True), np.finfo(np.float32).tiny) / 127
    return np.round(table / scales).astype(np.int8), scales.astype(np.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ONNX Runtime's tools, which log every node, and on import raise the log level of all libraries."""
    before, handlers, level = logging.root.manager.disable, list(logging.root.handlers), logging.root.level
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
