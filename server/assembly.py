"""Builds the server from the settings, runs it, and stops it in order. Tests run the same code on port 0."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from grpc.aio import Server
from prometheus_client import start_http_server
from segrec.v1 import (
    catalogue_service_pb2,
    catalogue_service_pb2_grpc,
    event_service_pb2,
    event_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    segrec_service_pb2,
    segrec_service_pb2_grpc,
)

from server import tracing
from server.adapters import lmdb_copy, valkey_server
from server.adapters.embedded_triton import EmbeddedTriton
from server.adapters.lmdb_store import LmdbStore
from server.adapters.lmdb_writer import LmdbWriter
from server.adapters.load_turn import LoadTurn
from server.adapters.ports import EncoderClient, HistoryStore, LoadProgress
from server.adapters.triton import TritonEncoder
from server.adapters.triton_access import TritonAccess, TritonSecret, TritonTls
from server.adapters.valkey_store import ValkeyStore
from server.core.errors import SetupError
from server.core.repository.layout import MODEL_NAME, ensure_repository
from server.core.repository.signature import read_release_key
from server.monitoring.canary_guard import CanaryGuard
from server.monitoring.health import HealthWatch
from server.monitoring.metrics import Metrics
from server.monitoring.observed_store import ObservedStore
from server.monitoring.shadow import Shadow
from server.releases.directory import ReleaseDirectory
from server.releases.loader import Loader
from server.releases.promotion import Promotion
from server.releases.registry import ReleaseRegistry
from server.releases.routing import Routing
from server.releases.segment_names import SegmentNamesWatcher
from server.releases.traffic_watcher import TrafficWatcher
from server.releases.verified import VerifiedReleases
from server.rpc.access_controls import access_controls
from server.rpc.catalogue_service import CatalogueServicer
from server.rpc.certificates import certificates_of
from server.rpc.endpoint import Endpoint, Service
from server.rpc.erasure_audit import ErasureAudit
from server.rpc.event_service import EventServicer
from server.rpc.messages.validation import Clock
from server.rpc.model_service import ModelServicer
from server.rpc.segrec_service import SegrecServicer, StreamLimits
from server.serving.batching import MicroBatcher
from server.serving.cache import EmbeddingCache
from server.serving.embedding import Embedder
from server.serving.pipeline import Pipeline
from server.settings import Settings

log = logging.getLogger(__name__)

TRITON_LOG = Path("triton.log")
VERIFIED = Path("verified_releases")
"""Default of `verified_directory`."""
LOAD_LOCK = ".load.lock"
"""File in the repository by which servers that share a Triton take turns."""
LONGEST_CLOSED_SECONDS = 30.0
"""The public address answers after this time at the latest, with or without a release."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers calls. The ports are the actual ones, also when the settings say 0."""

    port: int
    model_port: int
    metrics_port: int
    releases: ReleaseRegistry
    triton: EmbeddedTriton | None
    serving: asyncio.Event
    """Is set when a release is active."""


@dataclass(frozen=True, slots=True)
class _Background:
    """The parts that run in background tasks: they load, guard and compare releases, and follow the traffic."""

    releases: ReleaseRegistry
    loader: Loader
    traffic: TrafficWatcher
    names: SegmentNamesWatcher
    guard: CanaryGuard
    shadow: Shadow
    health: HealthWatch
    public: Endpoint
    poll_seconds: float


@asynccontextmanager
async def running(
    settings: Settings, clock: Clock = time.time, on_progress: LoadProgress | None = None
) -> AsyncIterator[Running]:
    """Run a server until the block ends, then drain it.

    At the end health says NOT_SERVING, accepted calls are answered, the store is flushed, and the embedded Triton
    stops. Raises `SetupError` when the server cannot start.
    """
    config = _triton_config(settings)
    verified = _verified_releases(settings)
    if verified is not None:
        config = verified.config_path
    metrics = Metrics()
    access = access_controls(settings, metrics)
    certificates = certificates_of(settings)
    if certificates is not None:
        metrics.certificate_ends.set_function(lambda: certificates.ends_seconds)
    async with AsyncExitStack() as stack:
        if settings.trace_endpoint is not None:
            stack.callback(tracing.start(settings.trace_endpoint, settings.trace_share))
        opened = await open_store(settings)
        if isinstance(opened, LmdbStore):
            _export_writer(metrics, opened.writer)
        store = ObservedStore(opened, metrics)
        stack.push_async_callback(store.close)
        executor, unary_executor = _threads(stack, "features"), _threads(stack, "unary")
        triton = _embedded_triton(settings, verified)
        if triton is not None:
            stack.push_async_callback(triton.stop)
            await triton.start()
        turn = None if triton else LoadTurn(settings.repository / LOAD_LOCK)
        address = triton.address if triton else settings.triton
        encoder = TritonEncoder(address, config, _triton_access(settings), turn)
        stack.push_async_callback(encoder.close)
        releases = ReleaseRegistry(ReleaseDirectory(settings.repository / MODEL_NAME, triton_root=config.parent))
        read = verified.read if verified else None
        names = SegmentNamesWatcher(settings.repository)
        loader = Loader(releases, encoder, settings.keep_releases, read, shared=triton is None, names=names.names)
        traffic = TrafficWatcher(settings.repository)
        traffic.on_change += [releases.set_traffic, lambda _: loader.refresh_soon()]
        if triton is not None:
            triton.set_callbacks(on_restart=loader.reload, probe=loader.check_active)
            encoder.on_hung_instance = triton.report_hung_stub
        cache = EmbeddingCache(settings.cache_entries)
        pipeline = _pipeline(settings, store, encoder, cache, executor, unary_executor)
        pipeline.on_encoder_failure = loader.probe_soon
        loader.warm_up = pipeline.warm_up
        shadow = _shadow(settings, store, encoder, releases, metrics, stack)
        guard = CanaryGuard(settings.repository, releases, metrics.release_stats)
        releases.on_unload += [pipeline.forget_release, metrics.release_stats.forget]
        if verified is not None:
            releases.on_unload.append(verified.forget)
        releases.on_change.append(partial(_warn_of_short_histories, releases, settings.history_limit, set()))
        _export(metrics, releases, traffic, cache, triton)
        _export_guard(metrics, guard)
        metrics.waiting_calls.set_function(lambda: pipeline.waiting_count)

        promotion = Promotion(settings.repository, releases, loader, traffic)
        metrics_port = _serve_metrics(settings, metrics, stack)
        stopping = asyncio.Event()
        audit = ErasureAudit(store, settings.repository)
        services = _services(pipeline, releases, metrics, clock, settings, shadow, audit, stopping)
        public = Endpoint(settings, settings.address, services, metrics, access(settings.address), certificates)
        models = Endpoint(
            settings,
            settings.model_address,
            [_model_service(promotion, metrics)],
            metrics,
            access(settings.model_address),
            certificates,
        )
        _export_rooms(metrics, public)
        stop = asyncio.Event()
        stack.push_async_callback(_drain, [public, models], settings.drain_seconds, stopping)
        await models.start()
        if settings.bootstrap_events is not None:
            await public.start()  # loading histories may take minutes, in which health must be heard
            await _bootstrap(store, settings.bootstrap_events, on_progress or _no_progress)
        serving = asyncio.Event()

        async def say(is_serving: bool) -> None:
            await public.start()
            await asyncio.gather(public.set_serving(is_serving), models.set_serving(True))
            serving.set()

        health = HealthWatch(
            lambda: releases.active is not None,
            lambda: releases.encoder_healthy,
            store.get,
            say,
            settings.unhealthy_seconds,
        )
        releases.on_change.append(health.changed.set)
        background = _Background(releases, loader, traffic, names, guard, shadow, health, public, settings.poll_seconds)
        task = asyncio.create_task(_run_background(background, stop))
        task.add_done_callback(log_failure)
        stack.push_async_callback(_stop_background, task, stop)
        yield Running(public.port, models.port, metrics_port, releases, triton, serving)


def _triton_config(settings: Settings) -> Path:
    """The path of the encoder's Triton configuration in the model repository, which is created when it is missing.

    Raises `SetupError` when the repository cannot be created, or when the file `bootstrap_events` does not exist.
    """
    events = settings.bootstrap_events
    if events is not None and not events.is_file():
        raise SetupError(f"bootstrap_events {events} does not exist: `segrec-train prepare` writes it")
    try:
        return ensure_repository(settings.repository)
    except OSError as error:
        raise SetupError(f"the model repository {settings.repository} cannot be created: {error.strerror}") from error


async def open_store(settings: Settings) -> HistoryStore:
    """The history store that the settings name. Raises `SetupError` when the store cannot be opened."""
    scheme, _, directory = settings.store.partition(":")
    if scheme == "lmdb" and directory:
        return LmdbStore.open(Path(directory), settings.history_limit, retention_days=settings.retention_days)
    if scheme in ("redis", "rediss", "unix"):
        return await ValkeyStore.connect(settings.store, settings.history_limit, retention_days=settings.retention_days)
    raise SetupError(
        f"a store of the kind {scheme!r} is not known: give lmdb:DIRECTORY, or a redis://, rediss:// or unix:// URL"
    )


def _warn_of_short_histories(releases: ReleaseRegistry, history_limit: int, warned: set[int]) -> None:
    release = releases.active
    if release is not None and release.preprocessing.max_length > history_limit and release.number not in warned:
        warned.add(release.number)
        log.warning(
            "release %d reads %d events per user, but the store keeps only the newest %d: the embeddings differ from "
            "those of the training; increase history_limit",
            release.number,
            release.preprocessing.max_length,
            history_limit,
        )


def _verified_releases(settings: Settings) -> VerifiedReleases | None:
    """The copies of signed releases; None without a release key. Raises `SetupError`."""
    if settings.release_key is None:
        return None
    key, is_remote = read_release_key(settings.release_key), settings.triton != "embedded"
    directory = settings.verified_directory or VERIFIED
    return VerifiedReleases(settings.repository / MODEL_NAME, directory, key, is_readable=is_remote)


def _embedded_triton(settings: Settings, verified: VerifiedReleases | None) -> EmbeddedTriton | None:
    if settings.triton != "embedded":
        return None
    repository = verified.repository if verified else settings.repository
    return EmbeddedTriton(repository, settings.triton_environment, log_path=TRITON_LOG)


def _triton_access(settings: Settings) -> TritonAccess:
    tls = None
    if settings.triton_ca is not None:
        tls = TritonTls(settings.triton_ca, settings.triton_certificate, settings.triton_key)
    return TritonAccess(tls, TritonSecret(settings.triton_secret_file))


def _threads(stack: AsyncExitStack, name: str) -> ThreadPoolExecutor:
    executor = ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1), thread_name_prefix=name)
    stack.callback(executor.shutdown)
    return executor


def _pipeline(
    settings: Settings,
    store: HistoryStore,
    encoder: EncoderClient,
    cache: EmbeddingCache,
    executor: ThreadPoolExecutor,
    unary_executor: ThreadPoolExecutor,
) -> Pipeline:
    """The pipeline of all calls. Unary calls have an embedder and threads of their own, and do not wait for streams."""
    batcher = MicroBatcher(Embedder(encoder, unary_executor), settings.max_batch_users)
    return Pipeline(store, cache, Embedder(encoder, executor, batcher.lane), batcher, executor, unary_executor)


def _shadow(
    settings: Settings,
    store: HistoryStore,
    encoder: EncoderClient,
    releases: ReleaseRegistry,
    metrics: Metrics,
    stack: AsyncExitStack,
) -> Shadow:
    """The comparison of answers with another release. Its thread and Triton calls are separate, so no answer waits."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shadow")
    stack.callback(executor.shutdown)
    pipeline = _pipeline(settings, store, encoder, EmbeddingCache(0), executor, executor)
    shadow = Shadow(releases, pipeline, metrics.release_stats, settings.shadow_budget, settings.encode_timeout_seconds)
    shadow.on_dropped = metrics.shadow_dropped.inc
    return shadow


def _services(
    pipeline: Pipeline,
    releases: ReleaseRegistry,
    metrics: Metrics,
    clock: Clock,
    settings: Settings,
    shadow: Shadow,
    audit: ErasureAudit,
    stopping: asyncio.Event,
) -> list[Service]:
    routing = Routing(releases)
    segrec = SegrecServicer(
        pipeline,
        routing,
        metrics,
        clock,
        settings.encode_timeout_seconds,
        shadow,
        StreamLimits(settings.stream_patience_seconds, settings.stream_idle_seconds),
        stopping,
    )
    note = lmdb_copy.ERASURE_NOTE if settings.store.startswith("lmdb:") else valkey_server.ERASURE_NOTE
    events = EventServicer(pipeline, releases, metrics, clock, note, audit)

    def add_segrec(server: Server) -> None:
        segrec_service_pb2_grpc.add_SegrecServiceServicer_to_server(segrec, server)

    def add_events(server: Server) -> None:
        event_service_pb2_grpc.add_EventServiceServicer_to_server(events, server)

    def add_catalogue(server: Server) -> None:
        catalogue_service_pb2_grpc.add_CatalogueServiceServicer_to_server(CatalogueServicer(routing), server)

    return [
        Service(segrec_service_pb2.DESCRIPTOR.services_by_name["SegrecService"], add_segrec),
        Service(event_service_pb2.DESCRIPTOR.services_by_name["EventService"], add_events),
        Service(catalogue_service_pb2.DESCRIPTOR.services_by_name["CatalogueService"], add_catalogue),
    ]


def _model_service(promotion: Promotion, metrics: Metrics) -> Service:
    servicer = ModelServicer(promotion, metrics.release_stats)

    def add(server: Server) -> None:
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)

    return Service(model_service_pb2.DESCRIPTOR.services_by_name["ModelService"], add)


def _export(
    metrics: Metrics,
    releases: ReleaseRegistry,
    traffic: TrafficWatcher,
    cache: EmbeddingCache,
    triton: EmbeddedTriton | None,
) -> None:
    """Connect the gauges to their sources; Prometheus reads the current values."""
    releases.on_change.append(lambda: metrics.show_traffic(releases.shares()))
    metrics.traffic_damaged.set_function(lambda: bool(traffic.failure))
    metrics.active_release.set_function(lambda: releases.active.number if releases.active else 0)
    metrics.stable_replaced.set_function(lambda: releases.is_replaced)
    metrics.encoder_healthy.set_function(lambda: releases.encoder_healthy)
    metrics.failed_releases.set_function(releases.failed_count)
    metrics.cached_embeddings.set_function(lambda: len(cache))
    metrics.triton_restarts.set_function(lambda: triton.restart_count if triton else 0)
    metrics.triton_aborts.set_function(lambda: triton.abort_count if triton else 0)


def _export_writer(metrics: Metrics, writer: LmdbWriter) -> None:
    metrics.waiting_writes.set_function(lambda: writer.waiting_count)
    writer.on_batch = metrics.write_batch_size.observe


def _export_rooms(metrics: Metrics, endpoint: Endpoint) -> None:
    for kind, room in endpoint.rooms.items():
        metrics.in_progress.labels(kind).set_function(partial(getattr, room, "count"))
        metrics.most_in_progress.labels(kind).set(room.most)


def _export_guard(metrics: Metrics, guard: CanaryGuard) -> None:
    metrics.guard_trips.set_function(lambda: guard.trip_count)
    metrics.guard_holding_out.set_function(lambda: guard.is_withholding)


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


async def _bootstrap(store: HistoryStore, events: Path, on_progress: LoadProgress) -> None:
    count = await store.bulk_load(events, on_progress)
    if count:
        log.info("histories of %d users were loaded from %s", count, events)


async def _run_background(background: _Background, stop: asyncio.Event) -> None:
    """Follow the repository until `stop` is set."""
    others = [asyncio.create_task(background.shadow.work()), asyncio.create_task(_open(background))]
    for task in others:
        task.add_done_callback(log_failure)
    try:
        await background.traffic.refresh()
    except Exception:
        log.exception("the traffic could not be read; trying again")
    try:
        await asyncio.gather(
            background.traffic.follow(stop),
            background.names.follow(stop),
            background.loader.follow(background.poll_seconds, stop),
            background.guard.watch(stop),
            background.health.watch(stop),
        )
    finally:
        for task in others:
            task.cancel()


async def _open(background: _Background) -> None:
    """Answer calls although no release is active: once none could be loaded, or loading takes long.

    Before that, callers of several servers stay with the servers that have a release.
    """
    with suppress(TimeoutError):
        await asyncio.wait_for(background.loader.tried.wait(), LONGEST_CLOSED_SECONDS)
    await background.public.start()


def log_failure(task: asyncio.Task[None]) -> None:
    """Log the exception of a task that nobody waits for; a done-callback of the task."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("a part of the server has ended", exc_info=task.exception())


async def _drain(endpoints: list[Endpoint], seconds: float, stopping: asyncio.Event) -> None:
    stopping.set()
    await asyncio.gather(*(endpoint.stop(seconds) for endpoint in endpoints))


async def _stop_background(task: asyncio.Task[None], stop: asyncio.Event) -> None:
    stop.set()
    await task


def _no_progress(done: int, total: int) -> None:
    """Show nothing."""
