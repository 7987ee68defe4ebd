"""Traces, logs and the access log of a running server, as a collector and a log reader get them."""

import json
import threading
import urllib.request
from collections.abc import Iterator

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from segrec.v1 import segrec_service_pb2 as pb
from segrec.v1.segrec_service_pb2_grpc import SegrecServiceStub

from tests.service.test_operations import record
from tests.support.collector import Collector
from tests.support.releases import tiny_release
from tests.support.server import ServerProcess, StartServer, Stubs
from tests.support.stream_messages import segment_messages
from tests.support.waiting import wait_until

TRACE_ID, CALLER_SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE_ID}-{CALLER_SPAN_ID}-01")
USER = "somebody-nobody-may-see"
RECOMMEND = "segrec.v1.SegrecService/Recommend"


def served(start_server: StartServer, *flags: str) -> tuple[ServerProcess, Stubs]:
    server = start_server(*flags)
    tiny_release(server.repository, 1)
    server.wait_until_serving()
    return server, Stubs(server)


def test_a_trace_goes_from_the_caller_through_each_step_to_the_collector_and_holds_no_id(
    start_server: StartServer, collector: Collector
) -> None:
    server, stubs = served(start_server, "--trace-endpoint", collector.endpoint, "--trace-share", "0")
    record(stubs, USER, 1)
    stubs.segrec.Recommend(pb.RecommendRequest(user_id=USER), metadata=(TRACEPARENT,))
    assert server.terminate() == 0, server.output  # the last spans are sent before the end
    stubs.close()

    spans = {span.name: span for span in collector.spans}
    assert sorted(spans) == sorted([RECOMMEND, "store", "batch", "features", "encode", "nearest", "rank"])
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE_ID}  # a share of 0 keeps what a caller began
    assert spans[RECOMMEND].parent_span_id.hex() == CALLER_SPAN_ID
    assert spans[RECOMMEND].kind == Span.SPAN_KIND_SERVER
    parents = {name: parent_name(span, collector.spans) for name, span in spans.items()}
    assert parents == {
        RECOMMEND: "",
        "store": RECOMMEND,
        "batch": RECOMMEND,
        "features": "batch",
        "encode": "batch",
        "nearest": "batch",
        "rank": RECOMMEND,
    }
    assert USER not in str(collector.spans)


def parent_name(span: Span, spans: list[Span]) -> str:
    return next((other.name for other in spans if other.span_id == span.parent_span_id), "")


def test_a_failed_call_has_its_code_in_the_trace_and_not_its_text(
    start_server: StartServer, collector: Collector
) -> None:
    _, stubs = served(start_server, "--trace-endpoint", collector.endpoint, "--trace-share", "1")
    with pytest.raises(grpc.RpcError):
        stubs.segrec.GetSegment(pb.GetSegmentRequest(segment_id=987654))
    stubs.close()
    wait_until(lambda: len(collector.spans) == 1)
    [span] = collector.spans
    assert {one.key: one.value.string_value for one in span.attributes}["rpc.response.status_code"] == "NOT_FOUND"
    assert "987654" not in str(span)


def test_a_collector_that_is_away_delays_no_call(start_server: StartServer) -> None:
    server, stubs = served(start_server, "--trace-endpoint", "http://127.0.0.1:9", "--trace-share", "1")
    record(stubs, USER, 1)
    assert stubs.segrec.Segment(pb.SegmentRequest(user_id=USER), timeout=1).info.history_event_count > 0
    stubs.close()
    assert server.terminate() == 0, server.output


def test_the_log_is_one_json_object_a_line_and_names_the_request(start_server: StartServer) -> None:
    server, stubs = served(start_server, "--log-format", "json", "--access-log", "true")
    stubs.segrec.Segment(pb.SegmentRequest(user_id=USER), metadata=(("x-request-id", "request-7"),))
    server.wait_until_said("server.access")
    stubs.close()
    assert server.terminate() == 0, server.output
    records = [json.loads(line) for line in server.lines if line.startswith("{")]
    assert all({"timestamp", "level", "logger", "message"} <= record.keys() for record in records)
    [access] = [record for record in records if record["logger"] == "server.access"]
    assert (access["method"], access["code"], access["request_id"]) == ("Segment", "OK", "request-7")
    assert access["milliseconds"] > 0
    assert USER not in server.output


def test_metrics_show_queues_limits_and_what_is_in_progress(start_server: StartServer) -> None:
    server, stubs = served(start_server, "--max-streams", "7")
    record(stubs, USER, 1)
    go_on = threading.Event()

    def requests() -> Iterator[pb.StreamSegmentRequest]:
        yield from segment_messages([USER])
        go_on.wait(20)

    stream = stubs.segrec.StreamSegment(requests())
    next(stream)
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as page:
        lines = page.read().decode().splitlines()
    go_on.set()
    list(stream)
    stubs.close()
    assert 'segrec_in_progress{kind="streams"} 1.0' in lines
    assert 'segrec_most_in_progress{kind="streams"} 7.0' in lines
    assert "segrec_waiting_writes 0.0" in lines
    assert "segrec_write_batch_size_count 1.0" in lines
    assert 'segrec_store_seconds_count{operation="record"} 1.0' in lines


def test_without_the_setting_no_call_is_logged(running_server: ServerProcess, stubs: Stubs) -> None:
    SegrecServiceStub(stubs.channel).Segment(pb.SegmentRequest(user_id=USER))
    assert not running_server.has_said("server.access")
