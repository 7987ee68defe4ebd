import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from server.core.errors import EncoderUnavailable, Overloaded
from server.core.features import CHUNK_SIZE
from server.core.history import EMPTY, history_of
from server.core.release import Release
from server.core.repository.read import read_release
from server.serving.batching import MicroBatcher
from server.serving.embedding import (
    ENCODINGS_IN_FLIGHT,
    LARGE_CALL_HISTORIES,
    LARGE_FROM_HISTORIES,
    Embedder,
    UnaryLane,
)
from tests.support.onnx_encoder import OnnxEncoder
from tests.support.releases import CONFIDENCE, group_history, tiny_release
from tests.support.ticking import Clock
from tests.support.waiting import pause


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return read_release(tiny_release(tmp_path))


@pytest.fixture
def encoder(tmp_path: Path) -> OnnxEncoder:
    encoder = OnnxEncoder(tmp_path)
    encoder.loaded = (1,)
    return encoder


@pytest.fixture
def embedder(encoder: OnnxEncoder) -> Iterator[Embedder]:
    with ThreadPoolExecutor(2) as executor:
        yield Embedder(encoder, executor)


async def test_results_are_in_the_order_of_the_histories(release: Release, embedder: Embedder) -> None:
    histories = [group_history(n % 4, 1 + n % 40) for n in range(100)]
    histories[7] = EMPTY
    results = await embedder.embed(release, histories, 5.0)
    assert [result.segment_index for n, result in enumerate(results) if n != 7] == [n % 4 for n in range(100) if n != 7]
    assert [result.used_count for result in results] == [min(len(history), 32) for history in histories]
    assert results[7].embedding is None
    assert results[7].segment_index == -1


async def test_each_row_has_its_confidence_and_whether_its_history_is_short(tmp_path: Path, embedder: Embedder) -> None:
    release = read_release(tiny_release(tmp_path, confidence=CONFIDENCE))
    torn = history_of(group_history(place % 2, 10).events()[place] for place in range(10))
    clear, short, doubtful, none = await embedder.embed(
        release, [group_history(1), group_history(1, 2), torn, EMPTY], 5.0
    )
    margin = (clear.runner_up_distance - clear.distance) / (clear.runner_up_distance + clear.distance)
    assert clear.confidence == pytest.approx(np.interp(margin, CONFIDENCE.margins, CONFIDENCE.stays))
    assert [row.is_confident for row in (clear, short, doubtful)] == [True, True, False]
    assert [row.is_short for row in (clear, short, doubtful)] == [False, True, False]
    assert none.confidence is None


async def test_without_calibration_there_is_no_confidence_and_every_user_is_confident(
    release: Release, embedder: Embedder
) -> None:
    [answer] = await embedder.embed(release, [group_history(1, 1)], 5.0)
    assert (answer.confidence, answer.is_confident, answer.is_short) == (None, True, False)


async def test_a_history_gets_the_same_embedding_alone_and_among_others(release: Release, embedder: Embedder) -> None:
    histories = [group_history(n % 4, 1 + n) for n in range(40)]
    together = await embedder.embed(release, histories, 5.0)
    for history, joint in zip(histories, together, strict=True):
        [alone] = await embedder.embed(release, [history], 5.0)
        assert alone.embedding is not None
        assert joint.embedding is not None
        np.testing.assert_allclose(alone.embedding, joint.embedding, atol=1e-6)


async def test_calls_that_arrive_together_are_joined(
    release: Release, embedder: Embedder, encoder: OnnxEncoder
) -> None:
    batcher = MicroBatcher(embedder, max_batch=256)
    encoder.gate = asyncio.Event()
    calls = [asyncio.ensure_future(batcher.embed(release, group_history(n % 4), 5.0)) for n in range(50)]
    await asyncio.wait(calls, timeout=0.1)
    encoder.gate.set()
    results = await asyncio.gather(*calls)
    assert [result.segment_index for result in results] == [n % 4 for n in range(50)]
    assert len(encoder.call_sizes) <= 4
    assert sum(encoder.call_sizes) == 50


async def test_a_micro_batch_is_no_larger_than_max_batch(
    release: Release, embedder: Embedder, encoder: OnnxEncoder
) -> None:
    batcher = MicroBatcher(embedder, max_batch=8)
    await asyncio.gather(*(batcher.embed(release, group_history(n % 4), 5.0) for n in range(50)))
    assert max(encoder.call_sizes) <= 8
    assert sum(encoder.call_sizes) == 50


async def test_each_call_fails_when_its_own_time_is_up(
    release: Release, embedder: Embedder, encoder: OnnxEncoder
) -> None:
    batcher = MicroBatcher(embedder, max_batch=8)
    encoder.gate = asyncio.Event()
    failed: list[float] = []

    async def ask(seconds: float) -> None:
        with pytest.raises(EncoderUnavailable, match="in time"):
            await batcher.embed(release, group_history(0), seconds)
        failed.append(seconds)

    patient = asyncio.ensure_future(batcher.embed(release, group_history(1), 30.0))
    await encoder.until_asked()
    await asyncio.gather(*map(ask, (0.09, 0.03, 0.06)))
    assert failed == [0.03, 0.06, 0.09]
    encoder.gate.set()
    assert (await patient).segment_index == 1


async def test_calls_whose_callers_have_gone_are_not_encoded(
    release: Release, embedder: Embedder, encoder: OnnxEncoder
) -> None:
    batcher = MicroBatcher(embedder, max_batch=8)
    encoder.gate = asyncio.Event()
    running = asyncio.ensure_future(batcher.embed(release, group_history(0), 30.0))
    await encoder.until_asked()
    cancelled = [asyncio.ensure_future(batcher.embed(release, group_history(0), 30.0)) for _ in range(20)]
    late = [asyncio.ensure_future(batcher.embed(release, group_history(0), 0.02)) for _ in range(20)]
    patient = [asyncio.ensure_future(batcher.embed(release, group_history(n % 4), 30.0)) for n in range(4)]
    await pause(0)
    assert batcher.waiting_count == 44
    for call in cancelled:
        call.cancel()
    failures = await asyncio.gather(*cancelled, *late, return_exceptions=True)
    assert {type(failure) for failure in failures} == {asyncio.CancelledError, EncoderUnavailable}
    assert batcher.waiting_count == 4
    encoder.gate.set()
    await running
    assert [answer.segment_index for answer in await asyncio.gather(*patient)] == [0, 1, 2, 3]
    assert sum(encoder.call_sizes) == 5
    assert batcher.waiting_count == 0


class SlowEncoder(OnnxEncoder):
    """Takes a tenth of a second for each call."""

    async def encode(
        self, release: int, inputs: Mapping[str, NDArray[np.generic]], timeout_seconds: float
    ) -> NDArray[np.float32]:
        await pause(0.1)
        return await super().encode(release, inputs, timeout_seconds)


async def test_a_call_that_cannot_be_in_time_is_refused_at_once(release: Release, tmp_path: Path) -> None:
    """Batches of four take a tenth of a second, so that the last of 200 calls waits five seconds."""
    encoder = SlowEncoder(tmp_path)
    encoder.loaded = (1,)
    with ThreadPoolExecutor(1) as executor:
        batcher = MicroBatcher(Embedder(encoder, executor), max_batch=4)
        histories = [group_history(n % 4) for n in range(200)]
        await asyncio.gather(*(batcher.embed(release, history, 30.0) for history in histories[:4]))  # is measured
        calls = [asyncio.ensure_future(batcher.embed(release, history, 2.0)) for history in histories]
        refused, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
        errors = [call.exception() for call in refused]
        assert 100 < len(errors) < 160
        assert {type(error) for error in errors} == {Overloaded}
        assert all(isinstance(error, Overloaded) and 0.5 < (error.retry_seconds or 0) < 5 for error in errors)
        assert encoder.call_sizes == [4]  # refused before any other batch has ended
        patient = asyncio.ensure_future(batcher.embed(release, group_history(3), 30.0))
        assert (await patient).segment_index == 3
        await asyncio.gather(*waiting, return_exceptions=True)


class TimedEncoder(OnnxEncoder):
    """Takes `call_seconds` of a test's clock for each call, and records the timeouts of the calls."""

    def __init__(self, repository: Path, clock: Clock, call_seconds: float) -> None:
        super().__init__(repository)
        self.loaded = (1,)
        self.clock = clock
        self.call_seconds = call_seconds
        self.timeouts: list[float] = []

    async def encode(
        self, release: int, inputs: Mapping[str, NDArray[np.generic]], timeout_seconds: float
    ) -> NDArray[np.float32]:
        self.timeouts.append(timeout_seconds)
        await pause(0)  # lets the calls beside this one begin
        self.clock.now += self.call_seconds
        return await super().encode(release, inputs, timeout_seconds)


async def test_waiting_for_a_turn_does_not_shorten_the_deadline_of_a_call(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.serving.embedding.monotonic", clock := Clock())
    encoder = TimedEncoder(tmp_path, clock, call_seconds=1.0)
    with ThreadPoolExecutor(1) as executor:
        embedder = Embedder(encoder, executor)
        streams = [embedder.embed(release, [group_history(n % 4)], 2.0) for n in range(20)]
        answers = await asyncio.gather(*streams)
    assert clock.now == 1000.0 + 20.0  # ten times a call's own two seconds
    assert encoder.timeouts == [2.0] * 20
    assert [answer.segment_index for [answer] in answers] == [n % 4 for n in range(20)]


async def test_waiting_calls_fail_together_when_the_encoder_answers_no_call(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.serving.embedding.monotonic", clock := Clock())
    encoder = TimedEncoder(tmp_path, clock, call_seconds=2.0)
    encoder.down = True
    with ThreadPoolExecutor(1) as executor:
        embedder = Embedder(encoder, executor)
        streams = [embedder.embed(release, [group_history(0)], 2.0) for _ in range(20)]
        failures = await asyncio.gather(*streams, return_exceptions=True)
        assert {type(failure) for failure in failures} == {EncoderUnavailable}
        assert len(encoder.timeouts) == ENCODINGS_IN_FLIGHT
        encoder.down = False
        [answer] = await embedder.embed(release, [group_history(3)], 2.0)
    assert answer.segment_index == 3


async def test_a_stuck_release_does_not_delay_another(
    tmp_path: Path, release: Release, embedder: Embedder, encoder: OnnxEncoder
) -> None:
    other = read_release(tiny_release(tmp_path, 2))
    encoder.loaded = (1, 2)
    batcher = MicroBatcher(embedder, max_batch=8)
    encoder.gate = gate = asyncio.Event()
    stuck = asyncio.ensure_future(batcher.embed(release, group_history(0), 30.0))
    await encoder.until_asked()
    encoder.gate = None
    behind = asyncio.ensure_future(batcher.embed(release, group_history(1), 30.0))
    assert (await batcher.embed(other, group_history(2), 30.0)).segment_index == 2
    assert not stuck.done()
    assert not behind.done()
    gate.set()
    assert [answer.segment_index for answer in await asyncio.gather(stuck, behind)] == [0, 1]


async def test_a_call_waits_no_longer_than_its_own_timeout(
    release: Release, embedder: Embedder, encoder: OnnxEncoder
) -> None:
    batcher = MicroBatcher(embedder, max_batch=8)
    encoder.gate = asyncio.Event()
    patient = asyncio.ensure_future(batcher.embed(release, group_history(0), 30.0))
    with pytest.raises(EncoderUnavailable, match="in time"):
        await batcher.embed(release, group_history(1), 0.05)
    encoder.gate.set()
    assert (await patient).segment_index == 0


async def test_a_batch_ends_when_all_its_calls_have_timed_out(
    release: Release, embedder: Embedder, encoder: OnnxEncoder
) -> None:
    batcher = MicroBatcher(embedder, max_batch=8)
    encoder.gate = asyncio.Event()
    with pytest.raises(EncoderUnavailable, match="in time"):
        await batcher.embed(release, group_history(0), 0.05)
    encoder.gate = None
    assert (await batcher.embed(release, group_history(1), 5.0)).segment_index == 1


async def test_a_failure_reaches_every_call_of_the_batch_and_the_next_one_works(
    release: Release, embedder: Embedder, encoder: OnnxEncoder
) -> None:
    batcher = MicroBatcher(embedder, max_batch=8)
    encoder.down = True
    calls = [batcher.embed(release, group_history(0), 1.0) for _ in range(5)]
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(failure) for failure in failures} == {EncoderUnavailable}
    encoder.down = False
    assert (await batcher.embed(release, group_history(3), 1.0)).segment_index == 3


async def test_while_unary_calls_come_streams_make_small_calls_one_at_a_time(
    release: Release, encoder: OnnxEncoder
) -> None:
    clock = Clock()
    lane = UnaryLane(clock)
    histories = [group_history(n % 4) for n in range(LARGE_FROM_HISTORIES)]
    with ThreadPoolExecutor(2) as executor:
        embedder = Embedder(encoder, executor, gives_way_to=lane)
        for is_busy, sizes in ((False, [LARGE_CALL_HISTORIES] * 2), (True, [CHUNK_SIZE])):
            if is_busy:
                lane.note_call()
            encoder.call_sizes.clear()
            encoder.gate = asyncio.Event()
            batch = asyncio.ensure_future(embedder.embed(release, histories, 30.0))
            await encoder.until_asked()
            await pause(0.05)
            assert encoder.call_sizes == sizes
            encoder.gate.set()
            assert [answer.segment_index for answer in await batch] == [n % 4 for n in range(LARGE_FROM_HISTORIES)]
    clock.now += UnaryLane.RECENT_SECONDS
    assert not lane.is_busy


async def test_unary_calls_make_the_lane_busy(release: Release, embedder: Embedder) -> None:
    batcher = MicroBatcher(embedder, max_batch=8)
    assert not batcher.lane.is_busy
    await batcher.embed(release, group_history(0), 5.0)
    assert batcher.lane.is_busy
