"""The answers of two releases for the same users, computed with ONNX Runtime and the server's ranking code."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
from numpy.typing import NDArray

from server.core.features import Features, Inputs, batches
from server.core.ranking.query import Query, Subject
from server.core.ranking.rank import rank
from server.core.release import Release
from server.core.repository.layout import MODEL_NAME, OUTPUT
from server.core.segments import next_item_part
from training.errors import LogError
from training.model.onnx_inference import embed, open_session
from training.runs import Progress, no_progress
from training.segments.placement import Histories, PlacedUsers, histories_of, past_events_of, place_embeddings

NO_ITEM = -1
_USERS_PER_RANKING = 512
_TIMED_BATCHES = 16
_TIMED_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """Events of some users of a log, sorted by user and time; `user_count` is the number of all users of the log."""

    events: pl.DataFrame
    user_count: int

    @property
    def users(self) -> int:
        """Number of users in the sample."""
        return self.events["user_id"].n_unique()


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one release for P users that both releases know.

    `segment_ids` (P,). `points` (P, E): the unit vectors that were clustered. `embeddings` (P, D): whole user
    embeddings. `confident` (P,): None if the release has no calibration. `items` (P, T): the recommended items, the
    best first, as codes that both releases share, padded with `NO_ITEM`. `scores` (P, T): their scores.
    """

    segment_ids: NDArray[np.int64]
    points: NDArray[np.float64]
    embeddings: NDArray[np.float32]
    confident: NDArray[np.bool_] | None
    items: NDArray[np.int64]
    scores: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Answers of both releases for the same users.

    `only_before` and `only_after` count users that one release alone knows. `microseconds` is the time of each encoder
    per user on one thread.
    """

    before: Answers
    after: Answers
    only_before: int
    only_after: int
    microseconds: tuple[float, float]

    @property
    def users(self) -> int:
        """Number of users that both releases know."""
        return len(self.before.segment_ids)


@dataclass(frozen=True, slots=True)
class _PlacedSample:
    """The users of the sample as one release sees them; `codes` (V,) are the shared codes of its items."""

    release: Release
    histories: Histories
    embeddings: NDArray[np.float32]
    placed: PlacedUsers
    codes: NDArray[np.int64]


def draw_sample(events: pl.DataFrame, count: int, seed: int) -> Sample:
    """A random sample of at most `count` users; `events` must be sorted by user and time."""
    users = events["user_id"].unique(maintain_order=True)
    if len(users) <= count:
        return Sample(events, len(users))
    rows = np.random.default_rng(seed).permutation(len(users))[:count]
    drawn = users.gather(np.sort(rows))
    return Sample(events.filter(pl.col("user_id").is_in(drawn.implode())), len(users))


def answers(
    repository: Path, before: Release, after: Release, sample: Sample, progress: Progress = no_progress
) -> AnswerPair:
    """Compute the answers of both releases for a sample. Raises LogError if no user is known to both."""
    codes = _shared_codes(before, after)
    sides = [_placed_sample(repository, r, sample, c, progress) for r, c in zip((before, after), codes, strict=True)]
    rows = np.intersect1d(sides[0].placed.rows, sides[1].placed.rows)
    if not len(rows):
        raise LogError(
            f"Of {sample.users:,} users none has an event that both release {before.number} and release {after.number} "
            "know; check that the log belongs to their catalogue."
        )
    progress("timing both encoders", 0, 0)
    microseconds = _latencies(repository, sides)
    known = [len(side.placed.rows) for side in sides]
    progress("ranking items", 0, 0)
    pair = [_answers(side, rows, sample) for side in sides]
    return AnswerPair(pair[0], pair[1], known[0] - len(rows), known[1] - len(rows), microseconds)


def common_items(before: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Equal items in two lists (P, T) of P users: entry (p, i, j) of (P, T, T) compares places i and j of user p."""
    same: NDArray[np.bool_] = (before[:, :, None] == after[:, None, :]) & (before != NO_ITEM)[:, :, None]
    return same


def _shared_codes(before: Release, after: Release) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A number for each item of both catalogues, by row of each catalogue; equal item ids have equal numbers."""
    count = len(before.item_ids)
    rows_before = np.array([before.vocabulary.get(item_id, 0) - 1 for item_id in after.item_ids], np.int64)
    # Items that only the later release has are numbered after all items of the earlier release.
    return np.arange(count), np.where(rows_before < 0, count + np.arange(len(rows_before)), rows_before)


def _placed_sample(
    repository: Path, release: Release, sample: Sample, codes: NDArray[np.int64], progress: Progress
) -> _PlacedSample:
    histories = histories_of(sample.events.lazy(), release)
    embeddings = embed(_model(repository, release), histories.features, release.preprocessing.max_length, progress)
    return _PlacedSample(release, histories, embeddings, place_embeddings(histories, release, embeddings), codes)


def _model(repository: Path, release: Release) -> Path:
    return repository / MODEL_NAME / str(release.number) / "model.onnx"


def _answers(side: _PlacedSample, rows: NDArray[np.intp], sample: Sample) -> Answers:
    """The answers of a release for the users at `rows` (P,) of the sample."""
    release, placed = side.release, side.placed
    places = np.searchsorted(placed.rows, rows)  # (P,) into the users that this release knows
    ids = np.array([profile.segment_id for profile in release.segments], np.int64)
    segment_ids = ids[placed.nearest.first[places]]
    calibration = release.manifest.confidence
    confident = None
    if calibration is not None and placed.confidence is not None:
        confident = placed.confidence[places] >= calibration.min_confidence
    embeddings = side.embeddings[rows]
    past = past_events_of(sample.events, release)
    subjects = [
        Subject(vector, int(segment_id), past[row])
        for vector, segment_id, row in zip(
            next_item_part(embeddings, release.manifest.embedding_dim), segment_ids, rows.tolist(), strict=True
        )
    ]
    items, scores = _recommendations(release, subjects, side.codes)
    return Answers(segment_ids, placed.points[places], embeddings, confident, items, scores)


def _recommendations(
    release: Release, subjects: Sequence[Subject], codes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Items, as shared codes, and scores (P, T) that `Recommend` returns for a query with default values."""
    query = Query()
    items = np.full((len(subjects), query.top_k), NO_ITEM, np.int64)
    scores = np.full(items.shape, np.nan)
    for start in range(0, len(subjects), _USERS_PER_RANKING):
        rankings = rank(release, query, subjects[start : start + _USERS_PER_RANKING])
        for place, ranking in enumerate(rankings, start):
            count = len(ranking.items)
            items[place, :count] = codes[[item.row for item in ranking.items]]
            scores[place, :count] = [item.score for item in ranking.items]
    return items, scores


def _latencies(repository: Path, sides: Sequence[_PlacedSample]) -> tuple[float, float]:
    """Microseconds of each encoder per user on one thread: medians of rounds in which both encoders take turns."""
    sessions = [open_session(_model(repository, side.release)) for side in sides]
    parts = [_timed_batches(side.histories.features, side.release.preprocessing.max_length) for side in sides]
    works = list(zip(sessions, parts, strict=True))
    for work in works:
        _microseconds(*work)  # a warm-up: the first call also allocates memory
    turns = [[_microseconds(*work) for work in works] for _ in range(_TIMED_ROUNDS)]
    before, after = np.median(turns, axis=0).tolist()
    return before, after


def _timed_batches(features: Features, max_length: int) -> list[tuple[NDArray[np.intp], Inputs]]:
    """At most `_TIMED_BATCHES` batches, spread evenly over all lengths."""
    parts = batches(features, max_length)
    return parts[:: -(-len(parts) // _TIMED_BATCHES)]


def _microseconds(session: onnxruntime.InferenceSession, parts: Sequence[tuple[NDArray[np.intp], Inputs]]) -> float:
    start = time.perf_counter()
    for _, inputs in parts:
        session.run([OUTPUT], inputs)
    return 1e6 * (time.perf_counter() - start) / sum(len(rows) for rows, _ in parts)
