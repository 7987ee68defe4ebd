"""A history store or an encoder that hangs: what callers and streams see meanwhile."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from segrec import SegrecClient
from segrec.errors import error_of_status
from segrec.v1 import common_pb2, event_service_pb2

from server.rpc.messages.conversion import event_message
from tests.support.redis_server import RedisServer
from tests.support.releases import group_history, tiny_release
from tests.support.server import StartServer
from tests.support.waiting import wait_until

STORE_UNAVAILABLE = common_pb2.DEGRADED_REASON_STORE_UNAVAILABLE


def events_of(user_id: str, group: int) -> list[event_service_pb2.UserEvent]:
    events = group_history(group).events()
    return [event_service_pb2.UserEvent(user_id=user_id, event=event_message(event)) for event in events]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


def test_while_redis_hangs_answers_are_degraded_and_soon_come_at_once(
    start_server: StartServer, tmp_path: Path, redis: RedisServer
) -> None:
    tiny_release(tmp_path / "repository", 1)
    server = start_server("--store", redis.url)
    server.wait_until_serving()
    assert redis.process is not None
    with SegrecClient(server.address) as client:
        client.record(events_of("u", 1))
        assert client.segment("u").assignment.segment_id == 2
        redis.process.send_signal(signal.SIGSTOP)
        reasons, seconds = [], []
        for _ in range(10):
            start = time.monotonic()
            reasons.append(client.segment("u").info.degraded_reason)
            seconds.append(time.monotonic() - start)
        assert reasons == [STORE_UNAVAILABLE] * 10
        assert sorted(seconds)[5] < 0.2
        [refused] = client.record(events_of("u", 1)[:1]).refused
        assert error_of_status(refused.status).reason == "STORE_UNAVAILABLE"
        redis.process.send_signal(signal.SIGCONT)
        wait_until(lambda: not client.segment("u").info.degraded)
        assert client.record(events_of("u", 2)).stored_count


def test_a_stream_waits_while_triton_is_away(start_server: StartServer, tmp_path: Path) -> None:
    tiny_release(tmp_path / "repository", 1)
    server = start_server()
    server.wait_until_serving()
    with SegrecClient(server.address) as client:
        for group in range(4):
            client.record(events_of(f"u{group}", group))
        users = [f"u{number % 4}" for number in range(64 * 40)]
        with client.stream_segment(users, chunk_size=64) as stream:
            rows = iter(stream)
            found = [next(rows)]
            [triton] = [
                process
                for process in psutil.Process(server.process.pid).children(recursive=True)
                if process.name() == "tritonserver"
            ]
            triton.kill()
            found += rows
    assert [row.result.assignment.segment_id for row in found] == [1 + number % 4 for number in range(len(users))]
    assert not any(row.result.info.degraded for row in found)
    assert server.has_said("the encoder of release 1 answers again")
