"""Traces of calls by OpenTelemetry, sent to a collector over OTLP/gRPC. Off unless a setting names the collector.

A call's span continues the caller's trace (`traceparent`, W3C Trace Context) and goes on to Triton. Spans hold methods,
status codes, release numbers and counts; never an id, an event or the text of an error. While tracing is off, a span
costs one comparison, and OpenTelemetry is not imported.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from server.core.errors import SetupError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

SERVICE_NAME = "segrec"

Attribute = str | int | float | bool
Metadata = tuple[tuple[str, str], ...]

_tracer: "Tracer | None" = None
_NO_SPAN: AbstractContextManager[None] = nullcontext()


def start(endpoint: str, share: float) -> Callable[[], None]:
    """Send traces to the collector at `endpoint` (`http://HOST:PORT`, or `https://`); returns the function that stops.

    `share`, 0 to 1, is the share of traces that begin here and are kept; a trace that a caller began is kept as the
    caller decided. The function that stops sends the remaining spans, within five seconds. A collector that is away
    delays no call: its spans are dropped. Raises `SetupError` for an endpoint of another form.
    """
    global _tracer  # noqa: PLW0603 one tracer per process, as in OpenTelemetry itself
    if not endpoint.startswith(("http://", "https://")):
        raise SetupError(f"trace_endpoint {endpoint!r} is no address: give http://HOST:PORT or https://HOST:PORT")
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=5)
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(share), resource=Resource.create({"service.name": SERVICE_NAME})
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = provider.get_tracer("server")

    def stop() -> None:
        global _tracer  # noqa: PLW0603
        _tracer = None
        provider.shutdown()

    return stop


def span(name: str, **attributes: Attribute) -> AbstractContextManager[Any]:
    """A span inside the current one; nothing while tracing is off, or outside a call."""
    if _tracer is None:
        return _NO_SPAN
    from opentelemetry.trace import get_current_span

    if not get_current_span().get_span_context().is_valid:
        return _NO_SPAN
    return _span(_tracer, name, attributes=attributes)


def call_span(method: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> AbstractContextManager[Any]:
    """The span of a call (`Service/Method`), in the trace that the caller's metadata name."""
    if _tracer is None:
        return _NO_SPAN
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
    parent = TraceContextTextMapPropagator().extract(carrier)
    attributes = {"rpc.system.name": "grpc", "rpc.method": method}
    return _span(_tracer, method, context=parent, kind=SpanKind.SERVER, attributes=attributes)


def end_call(code: str) -> None:
    """Note the status code of a failed call, by name, on its span."""
    if _tracer is None:
        return
    from opentelemetry import trace

    trace.get_current_span().set_attribute("rpc.response.status_code", code)


def current() -> "Context | None":
    """The current span, for `shared_span`; None while tracing is off."""
    if _tracer is None:
        return None
    from opentelemetry import context

    return context.get_current()


def shared_span(name: str, parents: Sequence["Context | None"], **attributes: Attribute) -> AbstractContextManager[Any]:
    """The span of work that several calls share: inside the first call's span, with links to those of the others."""
    known = [parent for parent in parents if parent is not None]
    if _tracer is None or not known:
        return _NO_SPAN
    from opentelemetry.trace import Link, get_current_span

    links = [Link(get_current_span(parent).get_span_context()) for parent in known[1:]]
    return _span(_tracer, name, context=known[0], links=links, attributes=attributes)


def outgoing_metadata() -> Metadata | None:
    """The `traceparent` of the current span, as metadata of a call to another service; None while tracing is off."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())


@contextmanager
def _span(tracer: "Tracer", name: str, **options: Any) -> Iterator[None]:
    """A span whose failure is told by the type of the error alone: texts of errors can hold ids."""
    from opentelemetry.trace import StatusCode

    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False, **options) as opened:
        try:
            yield
        except BaseException as error:
            opened.set_status(StatusCode.ERROR)
            opened.set_attribute("error.type", type(error).__name__)
            raise
