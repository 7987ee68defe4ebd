"""Streams and the end of a server: what was accepted is answered, the client goes on, and a restart is quick."""

import queue
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from segrec import SegrecClient
from segrec.errors import FailedPrecondition, NotFound, error_of_call
from segrec.v1 import event_service_pb2, segrec_service_pb2

from server.rpc.messages.conversion import event_message
from tests.support.releases import group_history, tiny_release
from tests.support.server import ServerProcess, StartServer, Stubs
from tests.support.stream_messages import segment_messages
from tests.support.waiting import wait_until

USERS = [f"u{number % 4}" for number in range(4000)]
SEGMENTS = [1 + number % 4 for number in range(4000)]
DRAIN_SECONDS = 30
"""The longest wait for accepted calls; a stream must not take it all."""


@pytest.fixture
def server(start_server: StartServer, tmp_path: Path) -> ServerProcess:
    tiny_release(tmp_path / "repository", 1, items=600)
    server = start_server("--drain-seconds", str(DRAIN_SECONDS), "--keep-releases", "1", "--stream-idle-seconds", "0.3")
    server.wait_until_serving()
    with SegrecClient(server.address) as client:
        for group in range(4):
            events = [event_message(event) for event in group_history(group).events()]
            client.record(event_service_pb2.UserEvent(user_id=f"u{group}", event=event) for event in events)
    return server


class RawStream:
    """A StreamSegment call whose requests are given one by one."""

    def __init__(self, server: ServerProcess) -> None:
        self._stubs = Stubs(server)
        self._requests: queue.SimpleQueue[segrec_service_pb2.StreamSegmentRequest | None] = queue.SimpleQueue()
        self._requests.put(next(segment_messages()))
        self.answers = self._stubs.segrec.StreamSegment(iter(self._requests.get, None))

    def send(self, chunk_id: int, *user_ids: str) -> None:
        chunk = segrec_service_pb2.UserChunk(chunk_id=chunk_id, user_ids=user_ids)
        self._requests.put(segrec_service_pb2.StreamSegmentRequest(chunk=chunk))

    def ask(self, chunk_id: int, *user_ids: str) -> segrec_service_pb2.SegmentChunk:
        self.send(chunk_id, *user_ids)
        return next(self.answers).chunk

    def reason_of_end(self) -> str:
        with pytest.raises(grpc.RpcError) as failure:
            next(self.answers)
        return error_of_call(failure.value, "").reason

    def close(self) -> None:
        self._requests.put(None)
        self.answers.cancel()
        self._stubs.close()


@pytest.fixture
def stream(server: ServerProcess) -> Iterator[RawStream]:
    stream = RawStream(server)
    yield stream
    stream.close()


def test_an_idle_stream_ends_with_the_server_and_says_why(server: ServerProcess, stream: RawStream) -> None:
    assert stream.ask(1, "u0", "u1").rows[1].result.assignment.segment_id == 2
    start = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - start < DRAIN_SECONDS / 2
    assert stream.reason_of_end() == "SHUTTING_DOWN"


def test_a_stream_goes_on_by_itself_when_the_server_is_restarted(
    server: ServerProcess, start_server: StartServer
) -> None:
    with SegrecClient(server.address) as client:
        with client.stream_segment(USERS, chunk_size=16) as rows:
            taken = iter(rows)
            found = [next(taken) for _ in range(100)]
            assert server.terminate() == 0
            start_server("--address", server.address).wait_until_serving()
            found += taken
        assert [row.result.assignment.segment_id for row in found] == SEGMENTS
        assert rows.counts.degraded_count == 0


def test_a_second_signal_ends_the_server_at_once(server: ServerProcess, stream: RawStream) -> None:
    """The stream's chunk waits for a Triton that hangs, and the server for the stream."""
    stream.ask(1, "u0")
    [triton] = [
        process
        for process in psutil.Process(server.process.pid).children(recursive=True)
        if process.name() == "tritonserver"
    ]
    triton.suspend()
    stream.send(2, *USERS[:64])
    server.process.send_signal(signal.SIGTERM)
    server.wait_until_said("draining")
    start = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=10) == 128 + signal.SIGTERM
    assert time.monotonic() - start < 1.0
    wait_until(lambda: not triton.is_running() or triton.status() == psutil.STATUS_ZOMBIE)


def test_a_stream_whose_answers_nobody_reads_does_not_hold_a_stop_beyond_its_bound(
    start_server: StartServer, tmp_path: Path
) -> None:
    tiny_release(tmp_path / "repository", 1)
    server = start_server("--drain-seconds", "2")
    server.wait_until_serving()
    stream = RawStream(server)
    for chunk_id in range(1, 101):
        stream.send(chunk_id, *USERS[:1000])
    next(stream.answers)
    begin = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - begin < DRAIN_SECONDS / 2
    stream.close()


def test_an_idle_stream_lets_go_of_its_release(server: ServerProcess, stream: RawStream) -> None:
    assert stream.ask(1, "u0").release == 1
    tiny_release(server.repository, 2, items=600)
    with SegrecClient(server.address) as client:
        wait_until(lambda: client.segment("anyone").info.release == 2)
        wait_until(lambda: is_gone(client, 1))
        assert stream.ask(2, "u0").rows[0].result.info.release == 2
        with pytest.raises(FailedPrecondition, match="release 1 is not loaded") as failure:
            list(client.stream_segment(["u0"], base_release=1))
        assert failure.value.reason == "RELEASE_GONE"


def is_gone(client: SegrecClient, release: int) -> bool:
    try:
        list(client.stream_segment(["anyone"], release=release))
    except NotFound:
        return True
    return False


def test_answers_of_many_items_come_in_parts_and_in_little_memory(server: ServerProcess) -> None:
    process = psutil.Process(server.process.pid)
    with SegrecClient(server.address) as client:
        list(client.stream_recommend(USERS[:1024]))  # warm
        before = process.memory_info().rss
        rows = list(client.stream_recommend(USERS[:2048], top_k=500))
        grown = process.memory_info().rss - before
    assert [row.result.assignment.segment_id for row in rows] == SEGMENTS[:2048]
    assert {len(row.result.items) for row in rows} == {500}
    assert grown < 200e6, f"{grown / 1e6:.0f} MB"
