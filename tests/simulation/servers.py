"""A simulated server: the product's parts, connected as `server.assembly` connects them."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from server.adapters.load_turn import LoadTurn
from server.adapters.triton import TritonEncoder
from server.adapters.triton_access import TritonAccess
from server.adapters.valkey_store import ValkeyStore
from server.core.repository.layout import MODEL_NAME
from server.monitoring.canary_guard import CanaryGuard
from server.monitoring.metrics import Metrics
from server.releases.directory import ReleaseDirectory
from server.releases.loader import Loader
from server.releases.promotion import Promotion
from server.releases.registry import ReleaseRegistry
from server.releases.routing import Routing
from server.releases.traffic_watcher import TrafficWatcher
from server.rpc.erasure_audit import ErasureAudit
from server.rpc.event_service import EventServicer
from server.rpc.segrec_service import SegrecServicer, StreamLimits
from server.serving.batching import MicroBatcher
from server.serving.cache import EmbeddingCache
from server.serving.embedding import Embedder
from server.serving.pipeline import Pipeline
from tests.simulation.loop import SimulatedLoop
from tests.simulation.parts import Channel, Triton, Valkey
from tests.simulation.releases import templates

CALL_SECONDS = 2.0
POLL_SECONDS = 0.5


class Context:
    """What the services ask of gRPC."""

    def time_remaining(self) -> float:
        return CALL_SECONDS

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> tuple[()]:
        return ()


class NoShadow:
    """Compares nothing."""

    def offer(self, *_: object) -> None:
        """Do nothing."""


class Access(TritonAccess):
    """Connects to a simulated Triton."""

    def __init__(self, triton: Triton) -> None:
        super().__init__()
        object.__setattr__(self, "triton", triton)

    def channel(self, address: str, options: Sequence[tuple[str, int]]) -> Any:
        return Channel(self.triton)  # type: ignore[attr-defined]


class Surroundings(Protocol):
    """What a server needs of its world."""

    repository: Path
    tritons: list[Triton]
    valkey: Valkey
    loop: SimulatedLoop

    def wall_time(self) -> float:
        """Seconds since 1970, UTC."""
        ...


class Server:
    """The product's parts as `server.assembly` connects them, in one simulated process."""

    def __init__(self, world: Surroundings, name: str, triton: Triton) -> None:
        self.name = name
        self.triton = triton
        self._tritons = world.tritons
        self.clock_error = 0.0
        self.tasks: dict[asyncio.Task[Any], None] = {}  # in order, so that a seed replays
        self.stop = asyncio.Event()
        metrics = Metrics()
        turn = LoadTurn(world.repository / ".load.lock")
        self.encoder = TritonEncoder("triton", templates() / MODEL_NAME / "config.pbtxt", Access(triton), turn)
        self.releases = ReleaseRegistry(ReleaseDirectory(world.repository / MODEL_NAME))
        self.loader = Loader(self.releases, self.encoder, keep=2, shared=True, clock=world.loop.time)
        self.watcher = TrafficWatcher(world.repository)
        self.watcher.on_change += [self.releases.set_traffic, lambda _: self.loader.refresh_soon()]
        self.store = ValkeyStore(world.valkey, "valkey", 1000)
        cache = EmbeddingCache(1000)
        executor = ThreadPoolExecutor(1)  # never used: the loop does its work
        batcher = MicroBatcher(Embedder(self.encoder, executor), 256)
        streams = Embedder(self.encoder, executor, batcher.lane)
        pipeline = Pipeline(self.store, cache, streams, batcher, executor, executor)
        pipeline.on_encoder_failure = self.loader.probe_soon
        self.loader.warm_up = pipeline.warm_up
        self.guard = CanaryGuard(
            world.repository, self.releases, metrics.release_stats, f"guard of {name}", world.loop.time
        )
        self.releases.on_unload += [pipeline.forget_release, metrics.release_stats.forget]
        self.promotion = Promotion(world.repository, self.releases, self.loader, self.watcher)
        self.segrec = SegrecServicer(
            pipeline,
            Routing(self.releases),
            metrics,
            lambda: world.wall_time() + self.clock_error,
            CALL_SECONDS,
            NoShadow(),  # type: ignore[arg-type]
            StreamLimits(),
            self.stop,
        )
        clock = lambda: world.wall_time() + self.clock_error  # noqa: E731
        audit = ErasureAudit(self.store, world.repository)
        self.events = EventServicer(pipeline, self.releases, metrics, clock, "", audit)
        self.started = world.loop.time()
        self.run(self._background())

    @property
    def is_serving(self) -> bool:
        """Whether its health says SERVING, so that callers come."""
        return self.releases.active is not None and not self.stop.is_set()

    @property
    def longest_change_seconds(self) -> float:
        """A server applies a change of traffic when it has loaded what is named; without a fault within this time.

        Servers of one repository load one after the other, also those of different Tritons: the slowest one counts.
        """
        return 3.0 + 8 * max(triton.load_seconds for triton in self._tritons)

    def run(self, work: Any) -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(work)
        self.tasks[task] = None
        task.add_done_callback(self.tasks.pop)
        return task

    async def _background(self) -> None:
        await self.watcher.refresh()
        await asyncio.gather(
            self.watcher.follow(self.stop), self.loader.follow(POLL_SECONDS, self.stop), self.guard.watch(self.stop)
        )

    def crash(self) -> None:
        """End at once, with all calls."""
        self.stop.set()
        for task in list(self.tasks):
            task.cancel()
