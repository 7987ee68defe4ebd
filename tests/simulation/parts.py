"""The parts around the product: Tritons, a Valkey, and the networks between them and a server."""

# ruff: noqa: N802 - gRPC names the methods

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import fakeredis
import grpc
import numpy as np
import onnx
from google.protobuf import json_format
from numpy.typing import NDArray
from onnx import numpy_helper
from redis.exceptions import ConnectionError as LostConnection
from tritonclient.grpc import model_config_pb2, service_pb2

from server.core.repository.layout import MODEL_NAME, OUTPUT

Clock = Callable[[], float]


def embeddings_of(model: Path, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """What the tiny release's model (`tests.support.releases`) gives, (B, D), without ONNX Runtime: much quicker."""
    tables = _tables(str(model))
    total = tables["item_table"][inputs["item_index"]] + tables["action_table"][inputs["action_index"]]
    total = total + tables["gap_table"][inputs["gap_index"]] + inputs["value"][..., None] * tables["value_row"]
    count = np.maximum((inputs["item_index"] > 0).sum(1, keepdims=True), 1)
    mean: NDArray[np.float32] = (total.sum(1) / count).astype(np.float32)
    return mean


@lru_cache(maxsize=64)
def _tables(model: str) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer}


@dataclass
class Triton:
    """One Triton: which versions it has loaded, from which model, and what is wrong with it."""

    root: Path
    rng: random.Random
    clock: Clock
    is_up: bool = True
    hangs_until: float = 0.0
    load_seconds: float = 0.1
    refuses_loads_until: float = 0.0
    loaded: dict[int, Path] = field(default_factory=dict)
    inference_counts: dict[int, int] = field(default_factory=dict)
    unsound: set[int] = field(default_factory=set)
    """Versions that pass their golden inputs and fail every other call."""
    _starts: int = 0

    def crash(self) -> None:
        """End, with all that was loaded."""
        self.is_up = False
        self.loaded = {}
        self._starts += 1

    async def ModelInfer(
        self, request: service_pb2.ModelInferRequest, **_options: Any
    ) -> service_pb2.ModelInferResponse:
        await self._answer_time()
        version = int(request.model_version)
        model = self.loaded.get(version)
        if model is None:
            raise _error(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{MODEL_NAME}' version {version}")
        inputs = {
            tensor.name: np.frombuffer(content, np.float32 if tensor.datatype == "FP32" else np.int32).reshape(
                *tensor.shape
            )
            for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        if version in self.unsound and len(inputs["item_index"]) != 4 and self.rng.random() < 0.5:
            raise _error(grpc.StatusCode.INTERNAL, "the model failed")
        self.inference_counts[version] = self.inference_counts.get(version, 0) + 1
        embeddings = embeddings_of(model, inputs)
        response = service_pb2.ModelInferResponse()
        response.outputs.add(name=OUTPUT, datatype="FP32", shape=embeddings.shape)
        response.raw_output_contents.append(embeddings.tobytes())
        return response

    async def ModelReady(
        self, request: service_pb2.ModelReadyRequest, **_options: Any
    ) -> service_pb2.ModelReadyResponse:
        await self._answer_time()
        return service_pb2.ModelReadyResponse(ready=int(request.version) in self.loaded)

    async def ModelStatistics(
        self, _: service_pb2.ModelStatisticsRequest, **_options: Any
    ) -> service_pb2.ModelStatisticsResponse:
        await self._answer_time()
        response = service_pb2.ModelStatisticsResponse()
        for version in self.loaded:
            count = self.inference_counts.get(version, 0)
            response.model_stats.add(name=MODEL_NAME, version=str(version), inference_count=count)
        return response

    async def RepositoryIndex(
        self, _: service_pb2.RepositoryIndexRequest, **_options: Any
    ) -> service_pb2.RepositoryIndexResponse:
        await self._answer_time()
        response = service_pb2.RepositoryIndexResponse()
        for version in self.loaded:
            response.models.add(name=MODEL_NAME, version=str(version), state="READY")
        return response

    async def RepositoryModelLoad(
        self, request: service_pb2.RepositoryModelLoadRequest, **_options: Any
    ) -> service_pb2.RepositoryModelLoadResponse:
        await self._answer_time()
        text = request.parameters["config"].string_param
        config = json_format.Parse(text, model_config_pb2.ModelConfig())
        wanted = {int(version) for version in config.version_policy.specific.versions}
        start = self._starts
        await asyncio.sleep(0.001 + self.load_seconds * len(wanted - set(self.loaded)))
        if not self.is_up or start != self._starts:
            raise _error(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        present = {version: self.root / str(version) / "model.onnx" for version in wanted}
        present = {version: model for version, model in present.items() if model.parent.is_dir()}
        refused = [version for version, model in present.items() if version not in self.loaded and not model.is_file()]
        if self.refuses_loads_until > self.clock() and set(present) - set(self.loaded):
            refused = sorted(set(present) - set(self.loaded))
        if refused:
            raise _error(grpc.StatusCode.INTERNAL, f"version {refused[0]} failed to load")
        self.loaded = {version: self.loaded.get(version, model) for version, model in present.items()}
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, _: service_pb2.RepositoryModelUnloadRequest, **_options: Any
    ) -> service_pb2.RepositoryModelUnloadResponse:
        await self._answer_time()
        self.loaded = {}
        return service_pb2.RepositoryModelUnloadResponse()

    async def _answer_time(self) -> None:
        start = self._starts
        await asyncio.sleep(self.rng.uniform(0.0005, 0.01))
        while self.is_up and self.hangs_until > self.clock():  # noqa: ASYNC110 - simulated time; it may be mended meanwhile
            await asyncio.sleep(min(0.2, self.hangs_until - self.clock()))
        if not self.is_up or start != self._starts:
            raise _error(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses")


def _error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


class Channel:
    """A server's connection to one Triton, in place of a gRPC channel."""

    def __init__(self, triton: Triton) -> None:
        self.triton = triton

    def __str__(self) -> str:
        return "triton"

    async def close(self, grace: float | None = None) -> None:
        """Nothing to close."""


@dataclass
class ValkeyFaults:
    """What is wrong with the Valkey server: `lost_share` of its commands lose their connection before or after."""

    rng: random.Random
    is_up: bool = True
    lost_share: float = 0.0


class Valkey(fakeredis.FakeAsyncRedis):
    """A client of the simulated Valkey; Lua scripts run in a real Lua."""

    faults: ValkeyFaults

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Do a command after a drawn delay; a lost connection may have done it all the same."""
        execute: Any = super().execute_command
        return await self._faulty(lambda: execute(*args, **options))

    async def _faulty(self, command: Callable[[], Awaitable[Any]]) -> Any:
        rng = self.faults.rng
        await asyncio.sleep(rng.uniform(0.0002, 0.005))
        if not self.faults.is_up:
            raise LostConnection("Connection refused")
        is_lost = rng.random() < self.faults.lost_share
        if is_lost and rng.random() < 0.5:
            raise LostConnection("Connection reset by peer")
        result = await command()
        await asyncio.sleep(rng.uniform(0.0002, 0.005))
        if is_lost:
            raise LostConnection("Connection reset by peer")
        return result
