"""Builds the server from the settings, runs it, and stops it in order. Tests run the same code on port 0."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from grpc.aio import Server
from prometheus_client import start_http_server
from segrec.v1 import (
    model_service_pb2,
    model_service_pb2_grpc,
)

from server import tracing
from server.adapters.embedded_triton import EmbeddedTriton
from server.adapters.load_turn import LoadTurn
from server.adapters.ports import HistoryStore, LoadProgress
from server.adapters.triton import TritonEncoder
from server.core.errors import SetupError
from server.core.repository.layout import MODEL_NAME, ensure_repository
from server.core.repository.signature import read_release_key
from server.monitoring.canary_guard import CanaryGuard
from server.monitoring.health import HealthWatch
from server.monitoring.metrics import Metrics
from server.monitoring.shadow import Shadow
from server.parts import Answering, log_failure, observed_store, public_endpoint, triton_access
from server.releases.directory import ReleaseDirectory
from server.releases.loader import Loader
from server.releases.promotion import Promotion
from server.releases.registry import ReleaseRegistry
from server.releases.rules_watcher import RulesWatcher
from server.releases.segment_names import SegmentNamesWatcher
from server.releases.traffic_watcher import TrafficWatcher
from server.releases.verified import VerifiedReleases
from server.rpc.access_controls import access_controls
from server.rpc.certificates import certificates_of
from server.rpc.endpoint import Endpoint, Service
from server.rpc.messages.validation import Clock
from server.rpc.model_service import ModelServicer
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
    rules: RulesWatcher
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
        store = await observed_store(settings, metrics, stack)
        triton = _embedded_triton(settings, verified)
        if triton is not None:
            stack.push_async_callback(triton.stop)
            await triton.start()
        turn = None if triton else LoadTurn(settings.repository / LOAD_LOCK)
        address = triton.address if triton else settings.triton
        encoder = TritonEncoder(address, config, triton_access(settings), turn)
        stack.push_async_callback(encoder.close)
        releases = ReleaseRegistry(ReleaseDirectory(settings.repository / MODEL_NAME, triton_root=config.parent))
        read = verified.read if verified else None
        names, rules = SegmentNamesWatcher(settings.repository), RulesWatcher(settings.repository, clock)
        rules.refresh()
        loader = Loader(
            releases, encoder, settings.keep_releases, read, triton is None, names=names.names, rules=rules.in_force
        )
        releases.on_unload.append(rules.in_force.forget_release)
        traffic = TrafficWatcher(settings.repository)
        traffic.on_change += [releases.set_traffic, lambda _: loader.refresh_soon()]
        if triton is not None:
            triton.set_callbacks(on_restart=loader.reload, probe=loader.check_active)
            encoder.on_hung_instance = triton.report_hung_stub
        guard = CanaryGuard(settings.repository, releases, metrics.release_stats)
        stopping = asyncio.Event()
        answering = Answering.of(settings, store, encoder, releases, metrics, stack)
        answering.pipeline.on_encoder_failure = loader.probe_soon
        loader.warm_up = answering.pipeline.warm_up
        public = public_endpoint(
            settings, answering, releases, store, metrics, access(settings.address), certificates, clock, stopping
        )
        if verified is not None:
            releases.on_unload.append(verified.forget)
        releases.on_change.append(partial(_warn_of_short_histories, releases, settings.history_limit, set()))
        _export(metrics, releases, traffic, triton)
        _export_guard(metrics, guard)

        promotion = Promotion(settings.repository, releases, loader, traffic)
        metrics_port = _serve_metrics(settings, metrics, stack)
        models = Endpoint(
            settings,
            settings.model_address,
            [_model_service(promotion, metrics)],
            metrics,
            access(settings.model_address),
            certificates,
        )
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
        background = _Background(
            releases, loader, traffic, names, rules, guard, answering.shadow, health, public, settings.poll_seconds
        )
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


def _model_service(promotion: Promotion, metrics: Metrics) -> Service:
    servicer = ModelServicer(promotion, metrics.release_stats)

    def add(server: Server) -> None:
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)

    return Service(model_service_pb2.DESCRIPTOR.services_by_name["ModelService"], add)


def _export(
    metrics: Metrics,
    releases: ReleaseRegistry,
    traffic: TrafficWatcher,
    triton: EmbeddedTriton | None,
) -> None:
    """Connect the gauges to their sources; Prometheus reads the current values."""
    releases.on_change.append(lambda: metrics.show_traffic(releases.shares()))
    metrics.traffic_damaged.set_function(lambda: bool(traffic.failure))
    metrics.active_release.set_function(lambda: releases.active.number if releases.active else 0)
    metrics.stable_replaced.set_function(lambda: releases.is_replaced)
    metrics.encoder_healthy.set_function(lambda: releases.encoder_healthy)
    metrics.failed_releases.set_function(releases.failed_count)
    metrics.triton_restarts.set_function(lambda: triton.restart_count if triton else 0)
    metrics.triton_aborts.set_function(lambda: triton.abort_count if triton else 0)


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
            background.rules.follow(stop),
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


async def _drain(endpoints: list[Endpoint], seconds: float, stopping: asyncio.Event) -> None:
    stopping.set()
    await asyncio.gather(*(endpoint.stop(seconds) for endpoint in endpoints))


async def _stop_background(task: asyncio.Task[None], stop: asyncio.Event) -> None:
    stop.set()
    await task


def _no_progress(done: int, total: int) -> None:
    """Show nothing."""
