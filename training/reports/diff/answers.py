"""What two releases answer for the same users, by ONNX Runtime and by the code that the server ranks with."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
from numpy.typing import NDArray

from server.core.features import Features, Inputs, batches
from server.core.ranking import Query, Ranked, Subject, rank
from server.core.release import Release
from server.core.repository.layout import MODEL_NAME, OUTPUT
from server.core.segments import next_item_part
from training.errors import LogError
from training.model.onnx_inference import embed, open_session
from training.runs import Progress, no_progress
from training.segments.placement import Histories, PlacedUsers, histories_of, place_embeddings, seen_item_rows

NO_ITEM = -1
_RANKED_AT_ONCE = 512
_TIMED_BATCHES = 16
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """Events of some users of a log, in the order of users and time; `user_count` is all users of the log."""

    events: pl.DataFrame
    user_count: int

    @property
    def users(self) -> int:
        """How many users were drawn."""
        return self.events["user_id"].n_unique()


@dataclass(frozen=True, slots=True)
class Answers:
    """What one release says of P users that both releases know.

    `segment_ids` (P,); `points` (P, E) of length 1, which place users among segments; `embeddings` (P, D) whole;
    `confident` (P,), None where the release has no calibration. `items` (P, T) are codes that both releases share, the
    best first, `NO_ITEM` where a list is shorter; `scores` (P, T) go with them.
    """

    segment_ids: NDArray[np.int64]
    points: NDArray[np.float64]
    embeddings: NDArray[np.float32]
    confident: NDArray[np.bool_] | None
    items: NDArray[np.int64]
    scores: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Answers of both releases for the same users, with the users whom only one of them knows.

    `microseconds` is what each encoder takes for a user on one thread.
    """

    before: Answers
    after: Answers
    only_before: int
    only_after: int
    microseconds: tuple[float, float]

    @property
    def users(self) -> int:
        """Those known to both."""
        return len(self.before.segment_ids)


@dataclass(frozen=True, slots=True)
class _Side:
    release: Release
    histories: Histories
    embeddings: NDArray[np.float32]
    placed: PlacedUsers
    codes: NDArray[np.int64]


def draw_sample(events: pl.DataFrame, count: int, seed: int) -> Sample:
    """A random sample of at most `count` users of a log that is in the order of users and time."""
    users = events["user_id"].unique(maintain_order=True)
    if len(users) <= count:
        return Sample(events, len(users))
    chosen = np.random.default_rng(seed).permutation(len(users))[:count]
    drawn = users.gather(np.sort(chosen))
    return Sample(events.filter(pl.col("user_id").is_in(drawn.implode())), len(users))


def answers(
    repository: Path, before: Release, after: Release, sample: Sample, progress: Progress = no_progress
) -> AnswerPair:
    """Ask both releases about the users of a sample. Raises LogError where no user is known to both."""
    codes = _codes(before, after)
    sides = [_side(repository, r, sample, c, progress) for r, c in zip((before, after), codes, strict=True)]
    rows = np.intersect1d(sides[0].placed.rows, sides[1].placed.rows)
    if not len(rows):
        raise LogError(
            f"Of {sample.users:,} users none has an event that both release {before.number} and release {after.number} "
            "know; is it a log of their catalogue?"
        )
    progress("timing both encoders", 0, 0)
    microseconds = _latencies(repository, sides)
    known = [len(side.placed.rows) for side in sides]
    progress("ranking items", 0, 0)
    found = [_answers(side, rows, sample) for side in sides]
    return AnswerPair(found[0], found[1], known[0] - len(rows), known[1] - len(rows), microseconds)


def common_items(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which items of two lists of P users are the same, (P, T, T): entry (p, i, j) is of places i and j."""
    same: NDArray[np.bool_] = (one[:, :, None] == other[:, None, :]) & (one != NO_ITEM)[:, :, None]
    return same


def _codes(before: Release, after: Release) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A number for each item of both catalogues, by row of each: equal where the item id is."""
    first, count = before.vocabulary, len(before.item_ids)
    codes = [first.get(item_id, 0) - 1 for item_id in after.item_ids]
    mine = np.array(codes, np.int64)
    return np.arange(count), np.where(mine < 0, count + np.arange(len(mine)), mine)


def _side(repository: Path, release: Release, sample: Sample, codes: NDArray[np.int64], progress: Progress) -> _Side:
    histories = histories_of(sample.events.lazy(), release)
    embeddings = embed(_model(repository, release), histories.features, release.preprocessing.max_length, progress)
    return _Side(release, histories, embeddings, place_embeddings(histories, release, embeddings), codes)


def _model(repository: Path, release: Release) -> Path:
    return repository / MODEL_NAME / str(release.number) / "model.onnx"


def _answers(side: _Side, rows: NDArray[np.intp], sample: Sample) -> Answers:
    """What a release says of the users at `rows` (P,) of the sample."""
    release, placed = side.release, side.placed
    here = np.searchsorted(placed.rows, rows)
    ids = np.array([profile.segment_id for profile in release.segments], np.int64)
    segment_ids = ids[placed.nearest.first[here]]
    calibration = release.manifest.confidence
    confident = None
    if calibration is not None and placed.confidence is not None:
        confident = placed.confidence[here] >= calibration.min_confidence
    embeddings = side.embeddings[rows]
    seen = seen_item_rows(sample.events, release)
    subjects = [
        Subject(vector, int(segment_id), seen[row])
        for vector, segment_id, row in zip(
            next_item_part(embeddings, release.manifest.embedding_dim), segment_ids, rows.tolist(), strict=True
        )
    ]
    items, scores = _lists(release, subjects, side.codes)
    return Answers(segment_ids, placed.points[here], embeddings, confident, items, scores)


def _lists(
    release: Release, subjects: Sequence[Subject], codes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What `Recommend` answers where nothing is asked for in particular: codes and scores (P, T)."""
    query = Query()
    items = np.full((len(subjects), query.top_k), NO_ITEM, np.int64)
    scores = np.full(items.shape, np.nan)
    for start in range(0, len(subjects), _RANKED_AT_ONCE):
        ranked: list[list[Ranked]] = rank(release, query, subjects[start : start + _RANKED_AT_ONCE])
        for place, row in enumerate(ranked, start):
            items[place, : len(row)] = codes[[item.row for item in row]]
            scores[place, : len(row)] = [item.score for item in row]
    return items, scores


def _latencies(repository: Path, sides: Sequence[_Side]) -> tuple[float, float]:
    """Microseconds that each encoder takes for a user on one thread: the median of rounds, taken in turn."""
    sessions = [open_session(_model(repository, side.release)) for side in sides]
    parts = [_timed_batches(side.histories.features, side.release.preprocessing.max_length) for side in sides]
    works = list(zip(sessions, parts, strict=True))
    for work in works:
        _microseconds(*work)  # the first one also pays for memory
    turns = [[_microseconds(*work) for work in works] for _ in range(_ROUNDS)]
    before, after = np.median(turns, axis=0).tolist()
    return before, after


def _timed_batches(features: Features, max_length: int) -> list[tuple[NDArray[np.intp], Inputs]]:
    """Batches of all lengths, of which there are not too many."""
    parts = batches(features, max_length)
    return parts[:: -(-len(parts) // _TIMED_BATCHES)]


def _microseconds(session: onnxruntime.InferenceSession, parts: Sequence[tuple[NDArray[np.intp], Inputs]]) -> float:
    start = time.perf_counter()
    for _, inputs in parts:
        session.run([OUTPUT], inputs)
    return 1e6 * (time.perf_counter() - start) / sum(len(rows) for rows, _ in parts)
