"""The parts of a process that answers calls, built from the settings: store, pipeline, shadow, services.

A server is one such process, or several workers (`server.workers`), of which each has these parts.
"""

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from grpc.aio import Server
from segrec.v1 import (
    catalogue_service_pb2,
    catalogue_service_pb2_grpc,
    event_service_pb2,
    event_service_pb2_grpc,
    segrec_service_pb2,
    segrec_service_pb2_grpc,
)

from server.access.control import AccessControl
from server.adapters import lmdb_copy, valkey_server
from server.adapters.lmdb_store import LmdbStore
from server.adapters.lmdb_writer import LmdbWriter
from server.adapters.ports import EncoderClient, HistoryStore
from server.adapters.triton_access import TritonAccess, TritonSecret, TritonTls
from server.adapters.valkey_store import ValkeyStore
from server.core.errors import SetupError
from server.monitoring.metrics import Metrics
from server.monitoring.observed_store import ObservedStore
from server.monitoring.shadow import Shadow
from server.releases.registry import ReleaseRegistry
from server.releases.routing import Routing
from server.rpc.catalogue_service import CatalogueServicer
from server.rpc.certificates import ServerCertificates
from server.rpc.endpoint import Endpoint, Service
from server.rpc.erasure_audit import ErasureAudit
from server.rpc.event_service import EventServicer
from server.rpc.messages.validation import Clock
from server.rpc.segrec_service import SegrecServicer, StreamLimits
from server.serving.batching import MicroBatcher
from server.serving.cache import EmbeddingCache
from server.serving.embedding import Embedder
from server.serving.pipeline import Pipeline
from server.settings import Settings

log = logging.getLogger(__name__)


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


async def observed_store(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> ObservedStore:
    """Open the store of the settings, which `stack` closes. Raises `SetupError`."""
    opened = await open_store(settings)
    if isinstance(opened, LmdbStore):
        export_writer(metrics, opened.writer)
    store = ObservedStore(opened, metrics)
    stack.push_async_callback(store.close)
    return store


def triton_access(settings: Settings) -> TritonAccess:
    """TLS and secret of a Triton that runs by itself. Raises `SetupError`."""
    tls = None
    if settings.triton_ca is not None:
        tls = TritonTls(settings.triton_ca, settings.triton_certificate, settings.triton_key)
    return TritonAccess(tls, TritonSecret(settings.triton_secret_file))


@dataclass(frozen=True, slots=True)
class Answering:
    """What answers calls, for one process. Unary calls have threads of their own, and do not wait for streams."""

    pipeline: Pipeline
    shadow: Shadow
    cache: EmbeddingCache

    @classmethod
    def of(
        cls,
        settings: Settings,
        store: HistoryStore,
        encoder: EncoderClient,
        releases: ReleaseRegistry,
        metrics: Metrics,
        stack: AsyncExitStack,
    ) -> "Answering":
        """Build the parts; `stack` ends their threads."""
        executor, unary_executor = _threads(stack, "features"), _threads(stack, "unary")
        cache = EmbeddingCache(settings.cache_entries)
        pipeline = _pipeline(settings, store, encoder, cache, executor, unary_executor)
        shadow = _shadow(settings, store, encoder, releases, metrics, stack)
        releases.on_unload += [pipeline.forget_release, metrics.release_stats.forget]
        metrics.cached_embeddings.set_function(lambda: len(cache))
        metrics.waiting_calls.set_function(lambda: pipeline.waiting_count)
        return cls(pipeline, shadow, cache)


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


def services_of(
    answering: Answering,
    releases: ReleaseRegistry,
    metrics: Metrics,
    clock: Clock,
    settings: Settings,
    audit: ErasureAudit,
    stopping: asyncio.Event,
) -> list[Service]:
    """The services of the public address."""
    pipeline = answering.pipeline
    routing = Routing(releases)
    segrec = SegrecServicer(
        pipeline,
        routing,
        metrics,
        clock,
        settings.encode_timeout_seconds,
        answering.shadow,
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


def public_endpoint(
    settings: Settings,
    answering: Answering,
    releases: ReleaseRegistry,
    store: HistoryStore,
    metrics: Metrics,
    access: AccessControl,
    certificates: ServerCertificates | None,
    clock: Clock,
    stopping: asyncio.Event,
    *,
    shares_port: bool = False,
) -> Endpoint:
    """The public address with its services; with `shares_port`, other processes of the server listen there, too.

    Streams end in order once `stopping` is set. Raises `SetupError`.
    """
    audit = ErasureAudit(store, settings.repository)
    services = services_of(answering, releases, metrics, clock, settings, audit, stopping)
    endpoint = Endpoint(settings, settings.address, services, metrics, access, certificates, shares_port=shares_port)
    export_rooms(metrics, endpoint)
    return endpoint


def export_writer(metrics: Metrics, writer: LmdbWriter) -> None:
    """Show the queue of the LMDB store's writer."""
    metrics.waiting_writes.set_function(lambda: writer.waiting_count)
    writer.on_batch = metrics.write_batch_size.observe


def export_rooms(metrics: Metrics, endpoint: Endpoint) -> None:
    """Show what is in progress at an address."""
    for kind, room in endpoint.rooms.items():
        metrics.in_progress.labels(kind).set_function(partial(getattr, room, "count"))
        metrics.most_in_progress.labels(kind).set(room.most)


def log_failure(task: asyncio.Task[None]) -> None:
    """Log the exception of a task that nobody waits for; a done-callback of the task."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("a part of the server has ended", exc_info=task.exception())
