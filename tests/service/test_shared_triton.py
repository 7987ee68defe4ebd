"""Two servers on one Triton: what one of them does costs the callers of the other nothing."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from segrec import SegrecClient

from server.adapters.triton import TritonEncoder
from server.core.repository.layout import CONFIG_NAME, MODEL_NAME
from server.core.repository.traffic import Guard, change_traffic, read_traffic
from tests.e2e.test_kill_under_load import NO_CACHE, USERS, serving
from tests.support.load import Load
from tests.support.releases import tiny_release
from tests.support.server import ServerProcess, StartServer
from tests.support.triton import triton_process

GUARD = Guard(max_degraded_share=0.02, max_error_share=0.02, window_seconds=1, min_answer_count=20)


@pytest.fixture
def triton(triton_environment: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a Triton on the servers' repository, which has releases 1 to 3; 2 is a guarded canary of 1."""
    repository = tmp_path / "repository"
    for number in (1, 2, 3):
        tiny_release(repository, number)
    change_traffic(
        repository, lambda before: before.with_stable(1).with_answering(2, 0.5, guard=GUARD), "traffic", "test"
    )
    with triton_process(triton_environment, repository, tmp_path / "triton.log") as address:
        yield address


async def _load(address: str, repository: Path, releases: list[int]) -> None:
    encoder = TritonEncoder(address, repository / MODEL_NAME / CONFIG_NAME)
    await encoder.load(releases)
    await encoder.close()


def test_a_rolling_restart_under_load_costs_no_answer_and_keeps_the_canary(
    start_server: StartServer, tmp_path: Path, triton: str
) -> None:
    staying = serving(start_server, tmp_path, *NO_CACHE, triton=triton)
    restarted = _started(start_server, triton)
    for _ in range(2):
        with Load(staying.address, USERS) as load:
            load.wait_for_answers(100)
            assert restarted.terminate() == 0
            started = _started(start_server, triton)
            load.wait_for_answers(300)
        assert set(load.seen.counts()) == {"OK"}
        staying, restarted = started, staying
    assert read_traffic(tmp_path / "repository").canary == 2


def test_a_canary_that_triton_has_lost_is_answered_by_the_stable_release_and_loaded_again(
    start_server: StartServer, tmp_path: Path, triton: str
) -> None:
    server = serving(start_server, tmp_path, *NO_CACHE, triton=triton)
    with Load(server.address, USERS) as load:
        with SegrecClient(server.address, timeout_seconds=20) as client:
            for _ in range(3):
                load.wait_for_answers(50)
                asyncio.run(_load(triton, tmp_path / "repository", [1]))
                rows = [row.result.info for row in client.stream_segment(USERS)]
                assert not any(info.degraded for info in rows)
        load.wait_for_answers(1000)
    assert set(load.seen.counts()) == {"OK"}
    assert read_traffic(tmp_path / "repository").canary == 2


def _started(start_server: StartServer, triton: str) -> ServerProcess:
    server = start_server(*NO_CACHE, triton=triton)
    server.wait_until_serving()
    return server
