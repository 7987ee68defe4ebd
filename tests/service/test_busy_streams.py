"""Streams that ask for more than the encoder can do at once, and streams whose callers leave early."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from segrec import SegrecClient
from segrec.errors import NotFound
from segrec.v1 import event_service_pb2

from server.core.history import History
from server.rpc.messages.conversion import event_message
from tests.support.releases import group_history, tiny_release
from tests.support.server import ServerProcess, StartServer, Stubs
from tests.support.waiting import wait_until

CHUNK = 1024
LENGTH = 1000
"""Events a user: one chunk then costs the encoder about a second."""


@pytest.fixture
def server(start_server: StartServer, tmp_path: Path) -> ServerProcess:
    """A server whose users u0 to u3 have long histories."""
    tiny_release(tmp_path / "repository", 1, dim=64, max_length=LENGTH)
    server = start_server("--keep-releases", "1")
    server.wait_until_serving()
    stubs = Stubs(server)
    for group in range(4):
        record(stubs, f"u{group}", group_history(group, LENGTH))
    stubs.close()
    return server


def record(stubs: Stubs, user_id: str, history: History) -> None:
    events = [event_service_pb2.UserEvent(user_id=user_id, event=event_message(event)) for event in history.events()]
    stubs.events.RecordEvents(event_service_pb2.RecordEventsRequest(events=events))


def users(count: int) -> Iterator[str]:
    return (f"u{number % 4}" for number in range(count))


def test_ten_streams_beside_unary_calls_lose_no_segment(server: ServerProcess) -> None:
    """Ten chunks at once take several times the two seconds that one call to Triton may take."""
    ended = threading.Event()

    def segments(_: int) -> Counter[tuple[bool, int]]:
        with SegrecClient(server.address) as client, client.stream_segment(users(CHUNK)) as rows:
            return Counter((row.result.info.degraded, row.result.assignment.segment_id) for row in rows)

    def calls() -> Counter[tuple[bool, int]]:
        found: Counter[tuple[bool, int]] = Counter()
        events = [event_message(event) for event in group_history(2).events()]
        with SegrecClient(server.address) as client:
            while not ended.is_set():
                answer = client.segment(events=events)
                found[answer.info.degraded, answer.assignment.segment_id] += 1
        return found

    with ThreadPoolExecutor(11) as pool:
        unary = pool.submit(calls)
        found = list(pool.map(segments, range(10)))
        ended.set()
    assert found == [{(False, segment_id): CHUNK // 4 for segment_id in (1, 2, 3, 4)}] * 10
    assert unary.result().keys() == {(False, 3)}


def test_a_stream_left_early_lets_go_of_its_release(server: ServerProcess, tmp_path: Path) -> None:
    """With one release kept, the old one is unloaded when the last call that holds it has ended."""
    with SegrecClient(server.address, timeout_seconds=20) as client:
        for _ in range(3):
            with client.stream_segment(users(40 * CHUNK), chunk_size=CHUNK) as rows:
                assert next(iter(rows)).result.info.release == 1
        tiny_release(tmp_path / "repository", 2)
        wait_until(lambda: client.segment("anyone").info.release == 2)

        def is_gone() -> bool:
            try:
                client.segment("anyone", release=1)
            except NotFound:
                return True
            return False

        wait_until(is_gone)


def test_streams_left_early_give_their_memory_back(server: ServerProcess) -> None:
    process = psutil.Process(server.process.pid)

    def leave(count: int) -> int:
        """Leave so many streams after their first rows; returns the server's memory afterwards, in bytes."""
        for _ in range(count):
            with client.stream_segment(users(40 * 8), chunk_size=8) as rows:
                next(iter(rows))
        return int(process.memory_info().rss)

    with SegrecClient(server.address) as client:
        before = leave(20)
        after = leave(200)
    assert after - before < 50e6, f"{(after - before) / 1e6:.0f} MB"
