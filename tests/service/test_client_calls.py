"""Single calls of the clients against real gRPC servers: options of a call, interceptors, several servers of a name."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from segrec import AsyncSegrecClient, SegrecClient
from segrec.errors import DeadlineExceeded, InvalidArgument, Overloaded

from tests.support.fake_segrec import FakeSegrec
from tests.support.server import ServerProcess
from tests.support.waiting import wait_until


class Recorder(
    grpc.UnaryUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Notes the methods and the metadata that a client sends, and what comes back after an answer."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.trailing: dict[str, Any] = {}

    def _note(self, details: Any) -> None:
        self.seen.append((details.method.rpartition("/")[2], dict(details.metadata or ())))

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self._note(details)
        call = continuation(details, request)
        self.trailing = dict(call.trailing_metadata() or ())
        return call

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        self._note(details)
        return continuation(details, requests)


class AsyncRecorder(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self) -> None:
        self.trailing: dict[str, Any] = {}

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request)
        self.trailing = dict(await call.trailing_metadata())
        return call


def test_interceptors_see_every_call_and_the_request_id_comes_back(running_server: ServerProcess) -> None:
    recorder = Recorder()
    with SegrecClient(running_server.address, interceptors=[recorder], timeout_seconds=20) as client:
        client.segment("calls-1", request_id="order-7", metadata={"x-team": "shop"})
        assert recorder.seen == [("Segment", {"x-team": "shop", "x-request-id": "order-7"})]
        assert recorder.trailing["x-request-id"] == "order-7"
        client.segment("calls-1")
        assert len(recorder.trailing["x-request-id"]) == 16, "a call without an id gets one"
        assert len(list(client.stream_segment(["calls-1"], request_id="batch-1"))) == 1
        assert recorder.seen[-1] == ("StreamSegment", {"x-request-id": "batch-1"})


async def test_asyncio_clients_take_the_same_options(running_server: ServerProcess) -> None:
    recorder = AsyncRecorder()
    async with AsyncSegrecClient(running_server.address, interceptors=[recorder], timeout_seconds=20) as client:
        await client.segment("calls-2", request_id="order-8")
        assert recorder.trailing["x-request-id"] == "order-8"
        with pytest.raises(InvalidArgument, match="did you mean top_k"):
            await client.recommend("calls-2", topk=3)  # type: ignore[call-arg]


def test_a_refused_call_is_in_the_log_by_its_request_id_and_without_its_values(running_server: ServerProcess) -> None:
    with SegrecClient(running_server.address, timeout_seconds=20) as client:

        def is_logged() -> bool:
            """Whether a refused call is in the log, where other calls may use up the lines of one second."""
            with pytest.raises(InvalidArgument) as caught:
                client.recommend("secret-user", top_k=501, request_id="wrong-1")
            assert caught.value.request_id == "wrong-1"
            return running_server.has_said("(request wrong-1)")

        wait_until(is_logged)
    line = next(line for line in running_server.lines if "(request wrong-1)" in line)
    assert "Recommend was refused: INVALID_ARGUMENT" in line
    assert "options.top_k" in line
    assert "secret-user" not in running_server.output


def test_the_deadline_of_a_call_is_its_own() -> None:
    with FakeSegrec() as fake, SegrecClient(fake.address, timeout_seconds=60) as client:
        fake.script.unary_refusals = 10_000
        with pytest.raises(Overloaded):
            client.segment("ab", timeout=0.3)
        with pytest.raises(DeadlineExceeded):
            list(client.stream_segment(endless(), chunk_size=8, timeout=0.5))


def endless() -> Iterator[str]:
    while True:
        yield "ab"


def test_the_servers_of_a_name_are_asked_in_turn() -> None:
    with (
        FakeSegrec() as one,
        FakeSegrec() as other,
        SegrecClient(f"ipv4:{one.address},{other.address}", timeout_seconds=20) as client,
    ):
        for _ in range(20):
            client.segment("ab")
        assert min(one.script.unary_calls, other.script.unary_calls) >= 5
        other.stop()
        counts = Counter(client.segment("ab").assignment.segment_id for _ in range(10))
        assert counts == {3: 10}, "a server that is gone is left out"
