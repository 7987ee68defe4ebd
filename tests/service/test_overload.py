"""More calls than the server has room for: each is answered or refused with a delay, and all are counted."""

import asyncio
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import repeat
from pathlib import Path

import grpc
import pytest
from segrec import SegrecClient
from segrec.errors import Overloaded, error_of_call
from segrec.v1 import event_service_pb2, segrec_service_pb2
from segrec.v1.common_pb2 import EventList
from segrec.v1.event_service_pb2_grpc import EventServiceStub
from segrec.v1.segrec_service_pb2_grpc import SegrecServiceStub

from server.rpc.messages.conversion import event_message
from tests.support.releases import group_history, tiny_release
from tests.support.server import ServerProcess, StartServer
from tests.support.stream_messages import segment_messages

BURST = 2000
"""More than gRPC itself lets wait: it cancels calls from 1,000 on by chance, from 3,000 on always."""


@pytest.fixture
def server(start_server: StartServer, tmp_path: Path) -> ServerProcess:
    tiny_release(tmp_path / "repository", 1)
    server = start_server("--max-calls", "8", "--max-streams", "2")
    server.wait_until_serving()
    return server


async def outcome(call: Awaitable[object]) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        refusal = error_of_call(error, "")
        return f"{refusal.code.name} {refusal.reason} {refusal.retry_seconds is not None}"
    return "OK"


async def burst(address: str, calls: Callable[[grpc.aio.Channel], list[Awaitable[object]]]) -> Counter[str]:
    async with grpc.aio.insecure_channel(address) as channel:
        return Counter(await asyncio.gather(*map(outcome, calls(channel))))


def counted(server: ServerProcess, method: str) -> int:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as page:
        lines = page.read().decode().splitlines()
    name = f'segrec_calls_total{{code="RESOURCE_EXHAUSTED",method="{method}"}} '
    return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))


async def test_a_burst_ends_in_answers_and_refusals_with_a_delay(server: ServerProcess) -> None:
    events = [event_message(event) for event in group_history(1).events()]

    def ask(channel: grpc.aio.Channel) -> list[Awaitable[object]]:
        stub = SegrecServiceStub(channel)
        request = segrec_service_pb2.SegmentRequest(events=EventList(events=events))
        return [stub.Segment(request, timeout=60) for _ in range(BURST)]

    def record(channel: grpc.aio.Channel) -> list[Awaitable[object]]:
        stub = EventServiceStub(channel)
        request = event_service_pb2.RecordEventsRequest(
            events=[event_service_pb2.UserEvent(user_id="somebody", event=event) for event in events]
        )
        return [stub.RecordEvents(request, timeout=60) for _ in range(BURST)]

    for method, calls in (("Segment", ask), ("RecordEvents", record)):
        found = await burst(server.address, calls)
        refused = found.pop("RESOURCE_EXHAUSTED OVERLOADED True", 0)
        assert refused + found.pop("OK") == BURST, found
        assert refused == counted(server, method) > 0


def test_streams_have_a_limit(server: ServerProcess) -> None:
    with SegrecClient(server.address) as client:
        first, second = (client.stream_segment(repeat("a"), chunk_size=1) for _ in range(2))
        with second:
            with first:
                next(first.chunks())
                next(second.chunks())
                with grpc.insecure_channel(server.address) as channel:
                    third = SegrecServiceStub(channel).StreamSegment(segment_messages())
                    with pytest.raises(grpc.RpcError) as failure:
                        list(third)
                refusal = error_of_call(failure.value, server.address)
                assert isinstance(refusal, Overloaded)
                assert refusal.retry_seconds
            assert len(list(client.stream_segment(["a", "b"]))) == 2
