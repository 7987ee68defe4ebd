"""Puts the server together, runs it, and takes it apart again. Tests start this very assembly, on port 0."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from grpc.aio import Server
from prometheus_client import start_http_server
from segrec.v1 import (
    event_service_pb2,
    event_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    segrec_service_pb2,
    segrec_service_pb2_grpc,
)

from server.adapters.embedded_triton import EmbeddedTriton
from server.adapters.lmdb_store import LmdbStore
from server.adapters.ports import HistoryStore, Progress
from server.adapters.triton import TritonEncoder
from server.adapters.valkey_store import ValkeyStore
from server.cache import EmbeddingCache
from server.core.errors import SetupError
from server.core.repository import ensure_repository
from server.embedding import Embedder, MicroBatcher
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.releases import Releases
from server.rpc.endpoint import Endpoint, Service
from server.rpc.event_service import EventServicer
from server.rpc.model_service import ModelServicer
from server.rpc.segrec_service import SegrecServicer
from server.rpc.validation import Clock
from server.settings import Settings

log = logging.getLogger(__name__)

TRITON_LOG = Path("triton.log")


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers. Ports are the ones really taken, also when the settings say 0."""

    port: int
    model_port: int
    metrics_port: int
    releases: Releases
    triton: EmbeddedTriton | None
    serving: asyncio.Event
    """Set once a release is active."""


@asynccontextmanager
async def running(
    settings: Settings, clock: Clock = time.time, on_progress: Progress | None = None
) -> AsyncIterator[Running]:
    """Run a server until the block ends, then drain it.

    At the end health says NOT_SERVING, accepted calls are answered, the store is flushed, and the embedded Triton
    stops. Raises `SetupError` with one sentence when the server cannot start.
    """
    config = _checked(settings)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        store = await open_store(settings)
        stack.push_async_callback(store.close)
        executor = ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1), thread_name_prefix="features")
        stack.callback(executor.shutdown)
        triton = _embedded(settings)
        if triton is not None:
            stack.push_async_callback(triton.stop)
            await triton.start()
        encoder = TritonEncoder(triton.address if triton else settings.triton, config)
        stack.push_async_callback(encoder.close)
        releases = Releases(settings.repository, encoder, settings.keep_releases)
        if triton is not None:
            triton.set_callbacks(on_restart=releases.reload, probe=releases.prove_active)
        cache = EmbeddingCache(settings.cache_entries)
        embedder = Embedder(encoder, executor)
        batcher = MicroBatcher(embedder, settings.max_batch_users, settings.max_waiting)
        pipeline = Pipeline(store, cache, embedder, batcher, executor)
        pipeline.on_encoder_failure = releases.probe_soon
        releases.on_unload.append(cache.forget_release)
        releases.on_change.append(partial(_warn_of_short_histories, releases, settings.history_limit))
        _export(metrics, releases, cache, triton)

        metrics_port = _serve_metrics(settings, metrics, stack)
        public = Endpoint(settings, settings.address, _services(pipeline, releases, metrics, clock, settings), metrics)
        models = Endpoint(settings, settings.model_address, [_model_service(releases)], metrics)
        stop = asyncio.Event()
        stack.push_async_callback(_drain, [public, models], settings.drain_seconds)
        for endpoint in (models, public):
            await endpoint.start()
        if settings.bootstrap_events is not None:
            await _bootstrap(store, settings.bootstrap_events, on_progress or _no_progress)
        serving = asyncio.Event()
        follower = asyncio.create_task(_follow(settings, releases, [public, models], serving, stop))
        stack.push_async_callback(_end, follower, stop)
        yield Running(public.port, models.port, metrics_port, releases, triton, serving)


def _checked(settings: Settings) -> Path:
    """See that what the settings name is there; returns the path of the encoder's Triton configuration."""
    events = settings.bootstrap_events
    if events is not None and not events.is_file():
        raise SetupError(f"bootstrap_events {events} does not exist: `segrec-train prepare` writes it")
    try:
        return ensure_repository(settings.repository)
    except OSError as error:
        raise SetupError(f"the model repository {settings.repository} cannot be made: {error.strerror}") from error


async def open_store(settings: Settings) -> HistoryStore:
    """The history store that the settings name. Raises `SetupError`."""
    kind, _, rest = settings.store.partition(":")
    if kind == "lmdb" and rest:
        return LmdbStore.open(Path(rest), settings.history_limit)
    if kind in ("redis", "rediss", "unix"):
        return await ValkeyStore.connect(settings.store, settings.history_limit)
    raise SetupError(
        f"a store of the kind {kind!r} is not known: give lmdb:DIRECTORY, or a redis://, rediss:// or unix:// URL"
    )


def _warn_of_short_histories(releases: Releases, history_limit: int) -> None:
    release = releases.active
    if release is not None and release.preprocessing.max_length > history_limit:
        log.warning(
            "release %d reads %d events a user, but only the newest %d are kept: its embeddings are not those of its "
            "training; raise history_limit",
            release.number,
            release.preprocessing.max_length,
            history_limit,
        )


def _embedded(settings: Settings) -> EmbeddedTriton | None:
    if settings.triton != "embedded":
        return None
    return EmbeddedTriton(settings.repository, settings.triton_environment, log_path=TRITON_LOG)


def _services(
    pipeline: Pipeline, releases: Releases, metrics: Metrics, clock: Clock, settings: Settings
) -> list[Service]:
    segrec = SegrecServicer(pipeline, releases, metrics, clock, settings.encode_timeout_seconds)
    events = EventServicer(pipeline, releases, metrics, clock)

    def add_segrec(server: Server) -> None:
        segrec_service_pb2_grpc.add_SegrecServiceServicer_to_server(segrec, server)

    def add_events(server: Server) -> None:
        event_service_pb2_grpc.add_EventServiceServicer_to_server(events, server)

    return [
        Service(segrec_service_pb2.DESCRIPTOR.services_by_name["SegrecService"], add_segrec),
        Service(event_service_pb2.DESCRIPTOR.services_by_name["EventService"], add_events),
    ]


def _model_service(releases: Releases) -> Service:
    servicer = ModelServicer(releases)

    def add(server: Server) -> None:
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)

    return Service(model_service_pb2.DESCRIPTOR.services_by_name["ModelService"], add)


def _export(metrics: Metrics, releases: Releases, cache: EmbeddingCache, triton: EmbeddedTriton | None) -> None:
    """Have the gauges read what they show when Prometheus asks."""
    metrics.active_release.set_function(lambda: releases.active.number if releases.active else 0)
    metrics.encoder_healthy.set_function(lambda: releases.encoder_healthy)
    metrics.failed_releases.set_function(releases.failed_count)
    metrics.cached_embeddings.set_function(lambda: len(cache))
    metrics.triton_restarts.set_function(lambda: triton.restart_count if triton else 0)


def _serve_metrics(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> int:
    host, _, port = settings.metrics_address.rpartition(":")
    try:
        server, _ = start_http_server(int(port), host, registry=metrics.registry)
    except (OSError, ValueError) as error:
        raise SetupError(
            f"cannot serve metrics on {settings.metrics_address} ({error}): choose another metrics_address"
        ) from error
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    return int(server.server_port)


async def _bootstrap(store: HistoryStore, events: Path, on_progress: Progress) -> None:
    count = await store.bulk_load(events, on_progress)
    if count:
        log.info("histories of %d users were loaded from %s", count, events)


async def _follow(
    settings: Settings, releases: Releases, endpoints: list[Endpoint], serving: asyncio.Event, stop: asyncio.Event
) -> None:
    """Follow the repository; health says SERVING as soon as a release is active."""
    changed = asyncio.Event()
    releases.on_change.append(changed.set)
    announcer = asyncio.create_task(_announce(releases, endpoints, serving, changed))
    try:
        await releases.follow(settings.poll_seconds, stop)
    finally:
        announcer.cancel()


async def _announce(
    releases: Releases, endpoints: list[Endpoint], serving: asyncio.Event, changed: asyncio.Event
) -> None:
    while True:
        await changed.wait()
        changed.clear()
        if releases.active is not None and not serving.is_set():
            for endpoint in endpoints:
                await endpoint.set_serving(True)
            serving.set()


async def _drain(endpoints: list[Endpoint], seconds: float) -> None:
    await asyncio.gather(*(endpoint.stop(seconds) for endpoint in endpoints))


async def _end(follower: asyncio.Task[None], stop: asyncio.Event) -> None:
    stop.set()
    await follower


def _no_progress(done: int, total: int) -> None:
    """Nobody watches."""
