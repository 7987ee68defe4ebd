"""Histories → user embeddings with segments: features in a worker thread, encoding in Triton."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import repeat
from time import monotonic
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from server import tracing
from server.adapters.ports import EncoderClient
from server.core.errors import EncoderUnavailable
from server.core.features import CHUNK_SIZE, Inputs, batches, features_of
from server.core.history import History
from server.core.release import Release
from server.core.segments import Nearest, margin, nearest, next_item_part, segment_part
from server.serving.answer import Embedded

T = TypeVar("T")

ENCODINGS_IN_FLIGHT = 2
"""Largest number of encoder batches in flight over all calls: one for each instance of the embedded Triton.

A batch that waits in Triton has its batcher spin."""

FEW_HISTORIES = 8
"""Up to this number of histories are prepared without a thread, which is quicker."""

LARGE_FROM_HISTORIES, LARGE_CALL_HISTORIES = 512, 256
"""From 512 histories on, one call to Triton holds 256 histories: each call costs about half a millisecond of its own,
and the embedded Triton removes the extra padding, piece by piece. While unary calls come, calls stay small."""


class UnaryLane:
    """Tells streams whether unary calls use the encoder now. Shared by the two embedders of a pipeline."""

    RECENT_SECONDS = 0.5

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._last_call = -float("inf")

    def note_call(self) -> None:
        """Record that a unary call uses the encoder."""
        self._last_call = self._clock()

    @property
    def is_busy(self) -> bool:
        """Whether a unary call has used the encoder in the last `RECENT_SECONDS`."""
        return self._clock() - self._last_call < self.RECENT_SECONDS


class Embedder:
    """Embeds histories with one release, with at most `ENCODINGS_IN_FLIGHT` calls to Triton at once.

    Waiting for a turn has no deadline, because many histories must wait even when Triton is healthy. The deadline of a
    call begins with the call.
    """

    def __init__(self, encoder: EncoderClient, executor: Executor, gives_way_to: UnaryLane | None = None) -> None:
        """`gives_way_to`: while this lane is busy, `embed` works for one caller at a time, in small calls one by one.

        One instance of the encoder and most threads then stay free, and a unary call waits for a few milliseconds.
        """
        self._encoder = encoder
        self._executor = executor
        self._lane = gives_way_to or UnaryLane()
        self._turn, self._call_turn = asyncio.Lock(), asyncio.Lock()
        self._in_flight = asyncio.Semaphore(ENCODINGS_IN_FLIGHT)
        self._last_answer = monotonic()

    def longest_silence(self, since: float) -> float:
        """See `EncoderClient.longest_silence`."""
        return self._encoder.longest_silence(since)

    async def embed(self, release: Release, histories: Sequence[History], call_seconds: float) -> list[Embedded]:
        """One result per history, in order.

        Raises `EncoderUnavailable` when Triton does not answer a call within `call_seconds`, or answers no call at all
        while a call waits for its turn for `call_seconds`.
        """
        async with self._turn if self._lane.is_busy else nullcontext():
            with tracing.span("features", histories=len(histories)):
                is_large = len(histories) >= LARGE_FROM_HISTORIES and not self._lane.is_busy
                size = LARGE_CALL_HISTORIES if is_large else CHUNK_SIZE
                work = await self._run(len(histories), _prepare, release, histories, size)
            tasks = [
                asyncio.ensure_future(self._encode(release.number, inputs, call_seconds)) for _, inputs in work.batches
            ]
            try:
                encoded = await asyncio.gather(*tasks)
            except BaseException:
                for task in tasks:
                    task.cancel()
                raise
            with tracing.span("nearest"):
                return await self._run(len(histories), _assign, release, work, encoded)

    async def _run(self, count: int, function: Callable[..., T], *arguments: object) -> T:
        """Call a function: here for few histories, which is cheaper; in a thread for many, to free the event loop."""
        if count <= FEW_HISTORIES:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def _encode(self, release: int, inputs: Inputs, call_seconds: float) -> NDArray[np.float32]:
        waiting_since = monotonic()
        async with self._in_flight:
            if self._last_answer <= waiting_since <= monotonic() - call_seconds:
                raise EncoderUnavailable(f"the encoder has answered no call for {call_seconds:.3f} s")
            async with self._call_turn if self._lane.is_busy else nullcontext():
                with tracing.span("encode", release=release):
                    embeddings = await self._encoder.encode(release, inputs, call_seconds)
            self._last_answer = monotonic()
            return embeddings


@dataclass(frozen=True, slots=True)
class _EncoderWork:
    """Encoder batches of B histories as (rows, inputs), and the used and ignored events of each history, (B,)."""

    batches: list[tuple[NDArray[np.intp], Inputs]]
    lengths: NDArray[np.int64]
    ignored: NDArray[np.int32]


def _prepare(release: Release, histories: Sequence[History], size: int) -> _EncoderWork:
    features = features_of(histories, release.item_index, release.action_index, release.preprocessing)
    return _EncoderWork(batches(features, release.preprocessing.max_length, size), features.lengths, features.ignored)


def _assign(release: Release, work: _EncoderWork, encoded: Sequence[NDArray[np.float32]]) -> list[Embedded]:
    results = [Embedded(None, 0, ignored) for ignored in work.ignored.tolist()]
    if not work.batches:
        return results
    rows = np.concatenate([rows for rows, _ in work.batches])
    embeddings = np.concatenate(encoded)
    item_dim = release.item_embeddings.shape[1]
    place = nearest(segment_part(embeddings, item_dim), release.centroids)
    used = work.lengths[rows]
    columns = zip(
        rows.tolist(),
        np.ascontiguousarray(next_item_part(embeddings, item_dim)),
        used.tolist(),
        work.ignored[rows].tolist(),
        place.first.tolist(),
        place.first_distance.tolist(),
        place.second.tolist(),
        place.second_distance.tolist(),
        *_confidence_columns(release, place, used),
        strict=True,
    )
    for row, *fields in columns:
        results[row] = Embedded(*fields)
    return results


def _confidence_columns(
    release: Release, place: Nearest, used: NDArray[np.int64]
) -> tuple[Iterable[float | None], Iterable[bool], Iterable[bool]]:
    """The columns `confidence`, `is_confident` and `is_short` of `Embedded`, one entry per embedded history (B,)."""
    calibration = release.manifest.confidence
    if calibration is None:
        return repeat(None, len(used)), repeat(True, len(used)), repeat(False, len(used))
    confidence = calibration.at(margin(place))
    is_confident, is_short = confidence >= calibration.min_confidence, used < calibration.min_history
    return confidence.tolist(), is_confident.tolist(), is_short.tolist()
