"""Traces: off they do nothing, on they go on to Triton, and no step outside a call begins one."""

# ruff: noqa: N802 - gRPC names the methods

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server import tracing
from server.adapters.triton import TritonEncoder
from server.core.errors import SetupError
from server.core.repository.layout import ensure_repository
from tests.support.collector import Collector

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = ("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-01")


@pytest.fixture
def traced(collector: Collector) -> Iterator[Collector]:
    stop = tracing.start(collector.endpoint, 1.0)
    yield collector
    stop()


class RecordingTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}

    async def ModelReady(self, request: Any, context: Any) -> Any:
        self.metadata = dict(context.invocation_metadata())
        return service_pb2.ModelReadyResponse(ready=True)


async def asked_triton(tmp_path: Path) -> dict[str, Any]:
    """The metadata that Triton gets in a traced call."""
    triton, server = RecordingTriton(), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    encoder = TritonEncoder(f"127.0.0.1:{port}", ensure_repository(tmp_path / "repository"))
    with tracing.call_span("service/Method", [TRACEPARENT]), tracing.span("encode"):
        assert await encoder.is_ready(1)
    await encoder.close()
    await server.stop(None)
    return triton.metadata


async def test_triton_gets_the_trace_of_the_call(traced: Collector, tmp_path: Path) -> None:
    metadata = await asked_triton(tmp_path)
    version, trace_id, span_id, flags = metadata["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", TRACE_ID, "01")
    assert span_id not in TRACEPARENT[1]


async def test_while_tracing_is_off_triton_gets_no_trace(tmp_path: Path) -> None:
    assert "traceparent" not in await asked_triton(tmp_path)


def test_what_runs_outside_a_call_begins_no_trace(collector: Collector) -> None:
    stop = tracing.start(collector.endpoint, 1.0)
    with tracing.span("store"):
        pass
    stop()
    assert collector.spans == []


def test_work_shared_by_calls_is_in_the_first_and_linked_to_the_others(collector: Collector) -> None:
    stop = tracing.start(collector.endpoint, 1.0)
    parents = []
    for name in ("a/One", "b/Two"):
        with tracing.call_span(name, ()):
            parents.append(tracing.current())
    with tracing.shared_span("batch", parents, calls=2):
        pass
    stop()
    spans = {span.name: span for span in collector.spans}
    assert spans["batch"].parent_span_id == spans["a/One"].span_id
    assert [link.span_id for link in spans["batch"].links] == [spans["b/Two"].span_id]


def test_a_failed_step_tells_the_type_of_its_error_and_not_its_text(collector: Collector) -> None:
    stop = tracing.start(collector.endpoint, 1.0)
    with pytest.raises(ValueError), tracing.call_span("a/One", ()):
        raise ValueError("user 4711")
    stop()
    [span] = collector.spans
    assert {one.key: one.value.string_value for one in span.attributes}["error.type"] == "ValueError"
    assert "4711" not in str(span)


@pytest.mark.parametrize("endpoint", ["localhost:4317", ""])
def test_an_endpoint_without_a_scheme_is_refused(endpoint: str) -> None:
    with pytest.raises(SetupError, match="trace_endpoint"):
        tracing.start(endpoint, 1.0)
