"""The client of Triton's gRPC API, for NVIDIA's container and for the embedded Triton.

Loading, as measured on Triton 2.51.0. The `config` of a load names the versions under `version_policy.specific`:

- Triton starts new versions, ends versions that are no longer named after their last call, and keeps the processes of
  the others. A load that changes nothing takes about a millisecond.
- A damaged version fails the whole load and changes nothing. The client then loads each missing version alone.
- A load by one server would end the versions of another. The client therefore names, beside the versions it wants,
  those that Triton has or is loading for others; between the look at the index and the load lie some milliseconds.
- A version without a directory is left out silently, so the client reads the index after each load.
- A new time stamp on `config.pbtxt` reloads nothing; a new time stamp on a version's directory reloads that version.

The client never cancels a call, because a cancelled call can crash this Triton. After a timeout the call is abandoned:
it ends by itself, and `abandoned_count` counts it until then.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf import json_format, text_format
from google.protobuf.message import Message
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2

from server import tracing
from server.adapters.load_turn import LoadTurn
from server.adapters.silences import Silences
from server.adapters.triton_access import TritonAccess, TritonConnection, explained
from server.core.errors import EncoderAway, EncoderUnavailable, ReleaseNotLoaded, SetupError
from server.core.repository.layout import MODEL_NAME, OUTPUT

logger = logging.getLogger(__name__)

FIRST_INPUT = "item_index"
DATA_TYPES = {"item_index": "INT32", "action_index": "INT32", "value": "FP32", "gap_index": "INT32"}
NUMPY_TYPES: dict[str, np.dtype[Any]] = {"INT32": np.dtype("<i4"), "FP32": np.dtype("<f4")}
ABANDONED_MAX = 64
"""Largest number of abandoned calls; at this number, new calls fail without being sent."""
LOAD_SECONDS = 120.0
QUERY_SECONDS = 5.0
_NOT_LOADED = ("not available", "unknown model")
"""Parts of Triton's error when no version of the model is loaded."""
_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.max_receive_message_length", -1),
    # Triton allows a ping every five minutes. A ping without an answer within the timeout ends all calls, so that calls
    # to a host that vanished do not wait for ever.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

Response = TypeVar("Response")


class TritonEncoder:
    """An `EncoderClient` for a Triton that may be absent, restarted or replaced at any time.

    `config_path` is the repository's `user_encoder/config.pbtxt`. It holds the batch limit, and each load sends it with
    the requested versions. With `turn`, servers that share a Triton load one after the other. Raises `SetupError` for
    files of `config_path` or `access` that cannot be used.
    """

    def __init__(
        self, address: str, config_path: Path, access: TritonAccess | None = None, turn: LoadTurn | None = None
    ) -> None:
        access = access or TritonAccess()
        self._turn: Callable[[], AbstractAsyncContextManager[None]] = turn or nullcontext
        self._address = address
        self._secret = access.secret
        self._config = read_config(config_path)
        self._connection = TritonConnection(address, access, _CHANNEL_OPTIONS)
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._requested: tuple[int, ...] = ()
        self._is_shared = False
        self._load_lock = asyncio.Lock()
        self._reload_task: asyncio.Task[None] | None = None
        self.on_hung_instance: Callable[[int], None] = _do_nothing
        """Called with a release when Triton reports that an instance of its model hangs."""
        self._silences = Silences()

    def longest_silence(self, since: float) -> float:
        """See `EncoderClient.longest_silence`."""
        return self._silences.longest_since(since)

    @property
    def abandoned_count(self) -> int:
        """Calls that timed out or were cancelled, and that Triton has not answered yet."""
        return len(self._abandoned)

    async def encode(
        self, release: int, inputs: Mapping[str, NDArray[np.generic]], timeout_seconds: float
    ) -> NDArray[np.float32]:
        """Return user embeddings, float32 (B, D), for inputs of shape (B, L) each; see `EncoderClient.encode`.

        More histories than `max_batch_size` are sent as several concurrent calls.
        """
        batch = len(inputs[FIRST_INPUT])
        limit = self._config.max_batch_size
        if batch <= limit:
            return await self._infer(release, inputs, timeout_seconds)
        starts = range(0, batch, limit)
        parts = [{name: array[start : start + limit] for name, array in inputs.items()} for start in starts]
        return np.concatenate(await asyncio.gather(*(self._infer(release, part, timeout_seconds) for part in parts)))

    async def load(self, releases: Sequence[int], keep: Callable[[], Collection[int]] | None = None) -> None:
        """Load these releases; see `EncoderClient.load` and the notes of this module."""
        async with self._load_lock:
            is_shrinking = set(releases) <= set(self._requested)
            self._requested, self._is_shared = tuple(sorted(set(releases))), keep is not None
            if keep is not None and is_shrinking and await self._is_in_place(keep):
                return
            async with self._turn():
                await self._load_requested(keep)

    async def inference_counts(self) -> dict[int, int]:
        """See `EncoderClient.inference_counts`."""
        request = service_pb2.ModelStatisticsRequest(name=MODEL_NAME)
        try:
            statistics = await self._call(self._connection.stub.ModelStatistics, request, QUERY_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND or any(
                text in (error.details() or "") for text in _NOT_LOADED
            ):
                return {}
            raise EncoderUnavailable(f"Triton at {self._address} gives no statistics: {error.details()}") from error
        return {int(model.version): model.inference_count for model in statistics.model_stats}

    async def reload(self) -> None:
        """Repeat the last `load`, for a Triton that has restarted without releases."""
        async with self._load_lock, self._turn():
            if self._requested:
                await self._load_requested()

    async def is_ready(self, release: int) -> bool:
        """See `EncoderClient.is_ready`."""
        request = service_pb2.ModelReadyRequest(name=MODEL_NAME, version=str(release))
        try:
            return bool((await self._call(self._connection.stub.ModelReady, request, QUERY_SECONDS)).ready)
        except (EncoderUnavailable, grpc.aio.AioRpcError):
            return False

    async def close(self) -> None:
        """Wait up to `QUERY_SECONDS` for the abandoned calls, then close the connection."""
        if self._reload_task:
            self._reload_task.cancel()
            await asyncio.gather(self._reload_task, return_exceptions=True)
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=QUERY_SECONDS)
        await self._connection.close()

    async def _infer(
        self, release: int, inputs: Mapping[str, NDArray[np.generic]], timeout_seconds: float
    ) -> NDArray[np.float32]:
        """Make one call with at most `max_batch_size` histories."""
        request = build_request(release, inputs)
        try:
            response = await self._call(self._connection.stub.ModelInfer, request, timeout_seconds)
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            problem = f"Triton at {self._address}: {error.code().name}: {details}"
            if "unknown model" in details:
                self._reload_soon(release)
                raise ReleaseNotLoaded(problem) from error
            if "is not healthy" in details:  # "Stub process '…' is not healthy", after a second
                self.on_hung_instance(release)
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise EncoderAway(problem) from error
            raise EncoderUnavailable(problem) from error
        return read_embeddings(response, len(inputs[FIRST_INPUT]))

    async def _call(self, method: Callable[..., Awaitable[Response]], request: Message, seconds: float) -> Response:
        """Send a request and wait at most `seconds`; after that the call is abandoned.

        Raises `AioRpcError` for an error of Triton or of the transport, `EncoderUnavailable` after a timeout or while
        there are too many abandoned calls.
        """
        if len(self._abandoned) >= ABANDONED_MAX:
            raise EncoderAway(f"Triton at {self._address} has not answered {len(self._abandoned)} earlier calls")
        task = asyncio.ensure_future(
            _finish(method(request, metadata=(*self._secret.metadata(), *(tracing.outgoing_metadata() or ()))))
        )
        try:
            await asyncio.wait((task,), timeout=seconds)
        finally:
            if task.done():
                _mark_retrieved(task)  # a caller that was cancelled just now asks for no result
            else:  # a timeout, or the caller was cancelled
                self._abandoned.add(task)
                task.add_done_callback(self._drained)
        if not task.done():
            raise EncoderUnavailable(f"Triton at {self._address} did not answer within {seconds:.3f} s")
        if (error := task.exception()) is None or not _is_of_transport(error):
            self._silences.end()
        return task.result()

    def _drained(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.discard(task)
        _mark_retrieved(task)

    def _reload_soon(self, release: int) -> None:
        """Load again in the background when Triton does not know a release of the last `load`."""
        loading = self._load_lock.locked() or (self._reload_task and not self._reload_task.done())
        if release in self._requested and not loading:
            self._reload_task = asyncio.create_task(self._reload_quietly())

    async def _reload_quietly(self) -> None:
        try:
            await self.reload()
        except EncoderUnavailable as error:
            logger.warning("loading the releases again failed: %s", error)

    async def _load_requested(self, keep: Callable[[], Collection[int]] | None = None) -> None:
        """Load all requested releases; if Triton refuses, add them one by one to the loaded releases.

        A shared Triton keeps what it has, without `keep` all of it: others may have loaded it since the last `load`.
        """
        requested = set(self._requested)
        try:
            kept = await self._releases_in_triton() if self._is_shared else set()
            kept &= kept if keep is None else set(await asyncio.to_thread(keep))
            if not await self._load_exactly(sorted(requested | kept), requested):
                return
            loaded, reasons = await self._ready_releases() & (requested | kept), {}
            for release in sorted(requested - loaded):
                reason = await self._load_exactly((*sorted(loaded), release), {release})
                if reason:
                    reasons[release] = reason
                else:
                    loaded.add(release)
        except grpc.aio.AioRpcError as error:
            raise EncoderUnavailable(f"Triton at {self._address} cannot load: {explained(error.details())}") from error
        self._requested = tuple(sorted(loaded & requested))
        if reasons:
            raise EncoderUnavailable(
                "; ".join(f"release {key} cannot be loaded: {why}" for key, why in reasons.items())
            )

    async def _is_in_place(self, keep: Callable[[], Collection[int]]) -> bool:
        """Whether a shared Triton has all requested releases, and nothing that must go: then no turn is needed.

        Other servers load for seconds each, and one that only lets go of a release waited behind all of them.
        """
        try:
            present, ready = await self._releases_in_triton(), await self._ready_releases()
        except (EncoderUnavailable, grpc.aio.AioRpcError):
            return False
        requested = set(self._requested)
        return requested <= ready and present <= requested | set(await asyncio.to_thread(keep))

    async def _load_exactly(self, releases: Sequence[int], needed: Collection[int]) -> str:
        """Have Triton load these releases and no other; returns why not all `needed` are there, or an empty string."""
        if not releases:
            request = service_pb2.RepositoryModelUnloadRequest(model_name=MODEL_NAME)
            await self._call(self._connection.stub.RepositoryModelUnload, request, LOAD_SECONDS)
            return ""
        try:
            await self._call(
                self._connection.stub.RepositoryModelLoad, build_load_request(self._config, releases), LOAD_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:  # the transport failed: Triton did not answer
                raise
            return error.details() or error.code().name
        missing = sorted(set(needed) - await self._ready_releases())
        return f"not in Triton's model repository: {missing}" if missing else ""

    async def _ready_releases(self) -> set[int]:
        return await self._releases_in_triton(ready=True)

    async def _releases_in_triton(self, ready: bool = False) -> set[int]:
        """The releases that are ready, with `ready` False also those that are being loaded."""
        request = service_pb2.RepositoryIndexRequest(ready=ready)
        index = await self._call(self._connection.stub.RepositoryIndex, request, QUERY_SECONDS)
        return {
            int(model.version)
            for model in index.models
            if model.name == MODEL_NAME and model.version and model.state in ("READY", "LOADING")
        }


def _do_nothing(_: int) -> None:
    """The default of `TritonEncoder.on_hung_instance`."""


def _mark_retrieved(task: asyncio.Task[Any]) -> None:
    """Tell asyncio that the exception of a task is known, or it logs a traceback when nobody asks for the result."""
    if not task.cancelled():
        task.exception()


async def _finish(call: Awaitable[Response]) -> Response:
    """Wrap a call into a coroutine, whose task can outlive a caller that is cancelled."""
    return await call


def read_config(path: Path) -> model_config_pb2.ModelConfig:
    """Read a config.pbtxt with Triton's own protobuf message. Raises `SetupError`."""
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise SetupError(f"{path} cannot be read: {error}") from error


def build_load_request(
    config: model_config_pb2.ModelConfig, releases: Sequence[int]
) -> service_pb2.RepositoryModelLoadRequest:
    """A request to load exactly these versions; replaces the version policy of the file."""
    chosen = model_config_pb2.ModelConfig()
    chosen.CopyFrom(config)
    chosen.version_policy.specific.versions[:] = releases
    request = service_pb2.RepositoryModelLoadRequest(model_name=MODEL_NAME)
    text = json_format.MessageToJson(chosen, preserving_proto_field_name=True, indent=None)
    request.parameters["config"].string_param = text
    return request


def build_request(release: int, inputs: Mapping[str, NDArray[np.generic]]) -> service_pb2.ModelInferRequest:
    """A request for one release with inputs of shape (B, L) as raw bytes."""
    request = service_pb2.ModelInferRequest(model_name=MODEL_NAME, model_version=str(release))
    for name, data_type in DATA_TYPES.items():
        array = inputs[name]
        request.inputs.add(name=name, datatype=data_type, shape=array.shape)
        request.raw_input_contents.append(array.astype(NUMPY_TYPES[data_type], copy=False).tobytes())
    return request


def _is_of_transport(error: BaseException) -> bool:
    """Whether an error comes from the connection, not from Triton."""
    return not isinstance(error, grpc.aio.AioRpcError) or error.code() == grpc.StatusCode.UNAVAILABLE


def read_embeddings(response: service_pb2.ModelInferResponse, batch: int) -> NDArray[np.float32]:
    """The embeddings of a response, float32 (batch, D). Raises `EncoderUnavailable` if incomplete or not finite."""
    if len(response.outputs) != 1 or len(response.raw_output_contents) != 1:
        raise EncoderUnavailable(f"Triton's answer has {len(response.outputs)} outputs, expected {OUTPUT} alone")
    output, content = response.outputs[0], response.raw_output_contents[0]
    shape = tuple(output.shape)
    named = output.name == OUTPUT and output.datatype == "FP32"
    if not named or len(shape) != 2 or shape[0] != batch or len(content) != 4 * shape[0] * shape[1] or not content:
        raise EncoderUnavailable(
            f"Triton's answer is {output.name} {output.datatype} {shape} in {len(content)} bytes, "
            f"expected {OUTPUT} FP32 ({batch}, D)"
        )
    embeddings = np.frombuffer(content, dtype=np.float32).reshape(shape)
    if not np.isfinite(embeddings).all():
        raise EncoderUnavailable("Triton's answer holds embeddings that are not finite")
    return embeddings
