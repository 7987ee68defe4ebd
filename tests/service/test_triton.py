"""The encoder against the real Triton: right answers, loads under traffic, and every way to break it."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from server.adapters.embedded_triton import EmbeddedTriton, supervisor
from server.adapters.load_turn import LoadTurn
from server.adapters.triton import ABANDONED_MAX, TritonEncoder
from server.core.errors import EncoderUnavailable
from tests.support.onnx_models import random_inputs
from tests.support.triton import ModelRepository, RunningTriton
from tests.support.waiting import pause, wait_until_async

SECONDS = 10.0


@pytest.fixture
async def encoder(running_triton: RunningTriton) -> AsyncIterator[TritonEncoder]:
    encoder = running_triton.encoder()
    await encoder.load([])
    yield encoder
    await encoder.close()


@pytest.fixture
async def own_encoder(
    embedded_triton: EmbeddedTriton, model_repository: ModelRepository
) -> AsyncIterator[TritonEncoder]:
    """An encoder on the test's own Triton, with release 1 loaded and told of restarts."""
    model_repository.add_tiny(1)
    encoder = TritonEncoder(embedded_triton.address, model_repository.config_path)
    embedded_triton.set_callbacks(encoder.reload)
    await encoder.load([1])
    yield encoder
    await encoder.close()


class Traffic:
    """Calls for one release, one after the other, until the block ends."""

    def __init__(self, encoder: TritonEncoder, release: int) -> None:
        self.answered = 0
        self.errors: list[EncoderUnavailable] = []
        self._encoder, self._release = encoder, release
        self._ending = False

    async def __aenter__(self) -> "Traffic":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ending = True
        await self._task

    async def _run(self) -> None:
        inputs = random_inputs(4, 8)
        while not self._ending:
            try:
                await self._encoder.encode(self._release, inputs, SECONDS)
                self.answered += 1
            except EncoderUnavailable as error:
                self.errors.append(error)
                await pause(0.02)

    async def flows(self) -> None:
        """Wait until ten more calls were answered."""
        goal = self.answered + 10

        async def reached() -> bool:
            return self.answered >= goal

        await wait_until_async(reached)


async def answers(encoder: TritonEncoder, release: int) -> bool:
    try:
        await encoder.encode(release, random_inputs(1, 4), SECONDS)
    except EncoderUnavailable:
        return False
    return True


@pytest.mark.parametrize(
    ("batch", "length"), [(1, 1), (1, 16), (3, 7), (32, 64), (64, 5), (200, 20), (256, 12), (257, 5)]
)
async def test_embeddings_equal_onnx_runtime(
    encoder: TritonEncoder, running_triton: RunningTriton, batch: int, length: int
) -> None:
    repository = running_triton.repository
    if not repository.model_path(11).exists():
        repository.add_tiny(11)
    await encoder.load([11])
    inputs = random_inputs(batch, length, seed=batch)
    embeddings = await encoder.encode(11, inputs, SECONDS)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, repository.expected(11, inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [9, 32, 33, 130])
async def test_a_batch_without_its_padding_gives_the_same_embeddings(
    encoder: TritonEncoder, running_triton: RunningTriton, count: int
) -> None:
    """Sorted by length, from histories that are padding alone to one without any."""
    repository = running_triton.repository
    if not repository.model_path(14).exists():
        repository.add_tiny(14)
    await encoder.load([14])
    padding = np.arange(24) < np.linspace(24, 0, count).astype(int)[:, None]
    inputs = {name: np.where(padding, 0, array).astype(array.dtype) for name, array in random_inputs(count, 24).items()}
    embeddings = await encoder.encode(14, inputs, SECONDS)
    np.testing.assert_allclose(embeddings, repository.expected(14, inputs), rtol=0, atol=1e-5)


async def test_concurrent_calls_each_get_their_own_rows(encoder: TritonEncoder, running_triton: RunningTriton) -> None:
    running_triton.repository.add_tiny(12)
    await encoder.load([12])
    asked = [random_inputs(1 + seed % 5, 4 + seed % 3, seed) for seed in range(60)]
    given = await asyncio.gather(*(encoder.encode(12, inputs, SECONDS) for inputs in asked))
    for inputs, embeddings in zip(asked, given, strict=True):
        np.testing.assert_allclose(embeddings, running_triton.repository.expected(12, inputs), rtol=0, atol=1e-5)


async def test_an_error_in_one_request_fails_no_other(encoder: TritonEncoder, running_triton: RunningTriton) -> None:
    running_triton.repository.add_tiny(13)
    await encoder.load([13])
    asked = [random_inputs(1, 6, seed) for seed in range(40)]
    for inputs in asked[::4]:
        inputs["item_index"][0, 0] = 10**6
    results = await asyncio.gather(*(encoder.encode(13, inputs, SECONDS) for inputs in asked), return_exceptions=True)
    failed = [position for position, result in enumerate(results) if isinstance(result, EncoderUnavailable)]
    assert failed == list(range(0, 40, 4))


async def test_loading_and_unloading_releases_under_traffic_fails_no_call(
    encoder: TritonEncoder, running_triton: RunningTriton
) -> None:
    repository = running_triton.repository
    repository.add_tiny(21)
    repository.add_tiny(22)
    await encoder.load([21])
    async with Traffic(encoder, 21) as traffic:
        for releases in ([21, 22], [21], [21, 22]):
            await encoder.load(releases)
            await traffic.flows()
            assert await encoder.is_ready(22) == (22 in releases)
    async with Traffic(encoder, 22) as other:
        await encoder.load([22])
        await other.flows()
    assert traffic.errors == other.errors == []
    assert not await answers(encoder, 21)
    inputs = random_inputs(2, 3)
    embeddings = await encoder.encode(22, inputs, SECONDS)
    np.testing.assert_allclose(embeddings, repository.expected(22, inputs), rtol=0, atol=1e-5)


async def test_servers_that_load_at_once_into_one_triton_drop_nothing_of_each_other(
    encoder: TritonEncoder, running_triton: RunningTriton, tmp_path: Path
) -> None:
    numbers = [61, 62, 63]
    for number in numbers:
        running_triton.repository.add_tiny(number)
    turn = LoadTurn(tmp_path / "lock")
    others = [TritonEncoder(running_triton.address, running_triton.repository.config_path, turn=turn) for _ in numbers]
    await asyncio.gather(
        *(other.load([number], lambda: [1, *numbers]) for other, number in zip(others, numbers, strict=True))
    )
    assert [await encoder.is_ready(number) for number in numbers] == [True] * 3
    async with turn():  # who needs nothing new does not wait while others load
        await asyncio.wait_for(others[2].load([63], lambda: [1, *numbers]), SECONDS)
    # One that loads again after a restart knows nothing of what the others have loaded since its last load, and one
    # that waits its turn looks at what to keep when the turn has come: release 63 is loaded while it waits.
    await others[0].load([61], list)
    known = {61, 62}
    async with turn():
        waiting = asyncio.create_task(others[1].load([62], lambda: set(known)))
        holder = TritonEncoder(running_triton.address, running_triton.repository.config_path)
        await holder.load([63], lambda: {61, 62, 63})
        known.add(63)
    await waiting
    await holder.close()
    await others[0].reload()
    assert await encoder.is_ready(63)
    for other in others:
        await other.close()


async def test_a_damaged_release_is_refused_and_the_others_still_answer(
    encoder: TritonEncoder, running_triton: RunningTriton
) -> None:
    repository = running_triton.repository
    repository.add_tiny(31)
    repository.add_tiny(33)
    repository.add_damaged(32)
    await encoder.load([31])
    async with Traffic(encoder, 31) as traffic:
        with pytest.raises(EncoderUnavailable, match=r"release 32 cannot be loaded: .*model\.onnx"):
            await encoder.load([31, 32, 33])
        await traffic.flows()
    assert traffic.errors == []
    assert [await encoder.is_ready(release) for release in (31, 32, 33)] == [True, False, True]
    assert await answers(encoder, 33)
    await encoder.reload()


async def test_the_error_of_a_missing_release_names_it(encoder: TritonEncoder, running_triton: RunningTriton) -> None:
    running_triton.repository.add_tiny(41)
    with pytest.raises(EncoderUnavailable, match=r"release 49 cannot be loaded: .*repository"):
        await encoder.load([41, 49])
    assert await answers(encoder, 41)


async def test_a_release_that_is_not_loaded_is_unavailable(encoder: TritonEncoder) -> None:
    with pytest.raises(EncoderUnavailable, match=r"NOT_FOUND|UNAVAILABLE"):
        await encoder.encode(999, random_inputs(1, 2), SECONDS)


async def test_calls_that_time_out_are_abandoned_and_end_by_themselves(
    encoder: TritonEncoder, running_triton: RunningTriton
) -> None:
    running_triton.repository.add_tiny(51)
    await encoder.load([51])
    hurried = (encoder.encode(51, random_inputs(64, 400, seed), 0.001) for seed in range(ABANDONED_MAX + 40))
    results = await asyncio.gather(*hurried, return_exceptions=True)
    assert all(isinstance(result, EncoderUnavailable) for result in results if isinstance(result, BaseException))
    callers = [asyncio.create_task(encoder.encode(51, random_inputs(64, 400, 1), SECONDS)) for _ in range(20)]
    await pause(0.002)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)

    async def drained() -> bool:
        return encoder.abandoned_count == 0

    await wait_until_async(drained)
    assert await answers(encoder, 51)


async def test_an_absent_triton_is_unavailable_at_once(running_triton: RunningTriton, tmp_path: Path) -> None:
    encoder = TritonEncoder(f"unix:{tmp_path / 'absent'}", running_triton.repository.config_path)
    started = time.monotonic()
    with pytest.raises(EncoderUnavailable):
        await encoder.encode(1, random_inputs(1, 2), SECONDS)
    with pytest.raises(EncoderUnavailable):
        await encoder.load([1])
    assert not await encoder.is_ready(1)
    assert time.monotonic() - started < 5
    await encoder.close()


async def test_a_silent_triton_costs_the_timeout_and_later_calls_fail_at_once(running_triton: RunningTriton) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        encoder = TritonEncoder(f"127.0.0.1:{silent.getsockname()[1]}", running_triton.repository.config_path)
        calls = (encoder.encode(1, random_inputs(1, 2), 0.05) for _ in range(ABANDONED_MAX))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, EncoderUnavailable) for result in results)
        with pytest.raises(EncoderUnavailable, match="earlier calls"):
            await encoder.encode(1, random_inputs(1, 2), SECONDS)
        await encoder.close()


async def test_killed_triton_is_started_again_and_loaded(
    embedded_triton: EmbeddedTriton, own_encoder: TritonEncoder
) -> None:
    first_pid, address = embedded_triton.pid, embedded_triton.address
    assert first_pid
    async with Traffic(own_encoder, 1) as traffic:
        await traffic.flows()
        os.kill(first_pid, signal.SIGKILL)
        await traffic.flows()
        await traffic.flows()
    assert embedded_triton.restart_count == 1
    assert embedded_triton.pid != first_pid
    assert embedded_triton.address == address


async def test_a_triton_that_lost_its_releases_is_loaded_again(
    embedded_triton: EmbeddedTriton, own_encoder: TritonEncoder, model_repository: ModelRepository
) -> None:
    other = TritonEncoder(embedded_triton.address, model_repository.config_path)
    await other.load([])
    await other.close()
    await wait_until_async(lambda: answers(own_encoder, 1))


async def test_the_inferences_of_the_loaded_releases_are_counted(
    embedded_triton: EmbeddedTriton, model_repository: ModelRepository
) -> None:
    encoder = TritonEncoder(embedded_triton.address, model_repository.config_path)
    assert await encoder.inference_counts() == {}
    for number in (1, 2):
        model_repository.add_tiny(number)
    await encoder.load([1])
    await encoder.load([2], keep=lambda: {1, 3})
    assert await encoder.inference_counts() == {1: 0, 2: 0}
    assert await answers(encoder, 2)
    assert await encoder.inference_counts() == {1: 0, 2: 1}
    await encoder.load([])
    assert await encoder.inference_counts() == {}
    await embedded_triton.stop()
    with pytest.raises(EncoderUnavailable):
        await encoder.inference_counts()
    await encoder.close()


@pytest.mark.parametrize("killed", [1, 2])
async def test_killed_stubs_are_replaced_while_the_other_release_answers(
    embedded_triton: EmbeddedTriton, own_encoder: TritonEncoder, model_repository: ModelRepository, killed: int
) -> None:
    stubs_of_1 = embedded_triton.stub_pids()
    model_repository.add_tiny(2)
    await own_encoder.load([1, 2])
    async with Traffic(own_encoder, 2) as other, Traffic(own_encoder, 1) as broken:
        await other.flows()
        for pid in stubs_of_1[:killed]:
            os.kill(pid, signal.SIGKILL)

        async def repaired() -> bool:
            return embedded_triton.repair_count == 1 and len(embedded_triton.stub_pids()) == 4

        await wait_until_async(repaired)
        await broken.flows()
        failures = len(broken.errors)
        await broken.flows()
    assert other.errors == []
    assert len(broken.errors) == failures
    assert embedded_triton.restart_count == 0


async def test_the_watch_walks_over_all_processes_only_when_a_stub_is_missing(
    embedded_triton: EmbeddedTriton,
    own_encoder: TritonEncoder,
    model_repository: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walks, checks, walk, check = [0], [0], psutil.process_iter, supervisor._ready_versions

    def counted_walk() -> Iterator[psutil.Process]:
        walks[0] += 1
        return walk()

    async def counted_check(channel: grpc.aio.Channel) -> set[int]:
        checks[0] += 1
        return await check(channel)

    async def checked(more: int) -> None:
        wanted = checks[0] + more

        async def enough() -> bool:
            return checks[0] > wanted

        await wait_until_async(enough)

    monkeypatch.setattr(supervisor, "WATCH_SECONDS", 0.05)
    await own_encoder.load([1])
    monkeypatch.setattr(supervisor, "_ready_versions", counted_check)
    await checked(2)
    monkeypatch.setattr(psutil, "process_iter", counted_walk)
    await checked(5)
    assert walks == [0]
    model_repository.add_tiny(2)
    await own_encoder.load([1, 2])
    await checked(2)
    assert walks == [1]
    os.kill(embedded_triton.stub_pids()[0], signal.SIGKILL)

    async def repaired() -> bool:
        return embedded_triton.repair_count == 1

    await wait_until_async(repaired)
