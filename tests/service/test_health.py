"""The health of a server while it starts and while its store is away."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2
from segrec.cli import main
from segrec.v1 import segrec_service_pb2

from tests.service.test_operations import health
from tests.support.redis_server import RedisServer
from tests.support.releases import tiny_release
from tests.support.server import StartServer, Stubs
from tests.support.waiting import wait_until

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


def test_a_call_during_the_start_waits_for_the_release_and_health_follows_the_store(
    start_server: StartServer, tmp_path: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_release(tmp_path / "repository", 1)
    server = start_server("--store", redis_server.url, "--unhealthy-seconds", "1")
    stubs = Stubs(server)
    assert not server.has_said("serving")
    answer = stubs.segrec.Segment(segrec_service_pb2.SegmentRequest(user_id="u"), timeout=60)
    assert answer.info.release == 1
    wait_until(lambda: health(stubs.channel) == SERVING)
    address = ["--address", server.address]
    assert main.main(["health", *address]) == 0
    redis_server.pause()
    wait_until(lambda: health(stubs.channel) == NOT_SERVING)
    assert main.main(["health", "--json", *address]) == 4
    assert main.main(["health", "--wait", "--timeout", "0.5", *address]) == 4
    shown = capsys.readouterr().out.splitlines()
    down = f"{server.address}: not serving"
    assert shown == [f"{server.address}: serving", f'{{"address": "{server.address}", "state": "not_serving"}}', down]
    degraded = stubs.segrec.Segment(segrec_service_pb2.SegmentRequest(user_id="u"), timeout=5)
    assert degraded.info.degraded
    redis_server.resume()
    assert main.main(["health", "--wait", "--timeout", "30", *address]) == 0
    stubs.close()


def test_a_server_that_can_load_no_release_answers_with_the_reason(start_server: StartServer, tmp_path: Path) -> None:
    (tiny_release(tmp_path / "repository", 1) / "centroids.npy").write_bytes(b"damaged")
    server = start_server()
    stubs = Stubs(server)
    wait_until(lambda: health(stubs.channel) == NOT_SERVING)
    assert server.terminate() == 0
    stubs.close()
