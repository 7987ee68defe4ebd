"""Drift on synthetic users: planted shifts are found, users from the same population are not flagged."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from server.core.release import Confidence
from server.core.segments import margin, nearest, normalised
from training.kmeans.fit import fit_kmeans
from training.kmeans.settings import KMeansSettings
from training.reports.drift import VERDICTS, embedding_shift, measure_drift, psi, unknown_share
from training.segments.drift_reference import DriftReference, reference_of

DIM, SEGMENTS, USERS, NEW, DRAWS = 32, 6, 1000, 300, 200
CENTERS = np.random.default_rng(0).normal(size=(SEGMENTS, DIM))
CALIBRATION = Confidence(margins=(0.0, 0.1, 0.5), stays=(0.3, 0.6, 1.0), min_confidence=0.65, min_history=3)


def users(
    count: int,
    rng: np.random.Generator,
    mix: tuple[float, ...] = (1 / SEGMENTS,) * SEGMENTS,
    offset: float = 0.0,
    spread: float = 0.7,
) -> NDArray[np.float32]:
    """Embeddings around six centers; `offset` moves all along one axis, `spread` is the noise about a center."""
    moved = CENTERS[rng.choice(SEGMENTS, count, p=mix)] + offset * np.eye(DIM)[0]
    found: NDArray[np.float32] = (moved + rng.normal(scale=spread, size=(count, DIM))).astype(np.float32)
    return found


class Model:
    """A release of 1,000 such users: their reference, its centroids, and the verdict on other users."""

    def __init__(self) -> None:
        self.users = users(USERS, np.random.default_rng(1))
        self.centroids = fit_kmeans(normalised(self.users), SEGMENTS, settings=KMeansSettings(restarts=2)).centroids
        place = nearest(self.users, self.centroids)
        confident = CALIBRATION.at(margin(place)) >= CALIBRATION.min_confidence
        counts = np.bincount(place.first)
        self.reference = reference_of(
            normalised(self.users), place.first_distance.astype(np.float32), np.full(USERS, 9), confident, 50
        )
        self.release = SimpleNamespace(
            segments=[SimpleNamespace(user_count=int(count)) for count in counts],
            manifest=SimpleNamespace(confidence=CALIBRATION),
        )

    def verdicts(self, embeddings: NDArray[np.float32]) -> dict[str, str]:
        place = nearest(embeddings, self.centroids)
        points, confidence = normalised(embeddings), CALIBRATION.at(margin(place))
        placed = SimpleNamespace(points=points, nearest=place, confidence=confidence, users=embeddings)
        measures = measure_drift(self.release, self.reference, placed)  # type: ignore[arg-type]
        return {measure.name: measure.verdict for measure in measures}

    def rate(self, draw: Callable[[np.random.Generator], NDArray[np.float32]]) -> float:
        """Share of draws whose verdict is not `stable`."""
        found = [self.verdicts(draw(np.random.default_rng([2, seed]))) for seed in range(DRAWS)]
        return float(np.mean([set(verdicts.values()) != {"stable"} for verdicts in found]))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.mark.parametrize("count", [20, 60, NEW, 2000])
def test_a_resample_of_the_same_users_is_not_flagged(model: Model, count: int) -> None:
    assert model.rate(lambda rng: model.users[rng.integers(0, USERS, count)]) <= 0.05


@pytest.mark.parametrize("count", [20, 60, NEW, 2000])
def test_fresh_users_of_the_same_population_are_not_flagged(model: Model, count: int) -> None:
    assert model.rate(lambda rng: users(count, rng)) <= 0.05


def test_another_mix_of_segments_is_flagged(model: Model) -> None:
    """Two segments grow from a third of the users to seven in ten: an index of 0.6."""
    mix = (0.4, 0.3, 0.1, 0.1, 0.05, 0.05)
    assert model.rate(lambda rng: users(NEW, rng, mix=mix)) >= 0.95


def test_a_move_of_everyone_is_flagged(model: Model) -> None:
    """All embeddings move by 0.6 along an axis along which users of a segment spread by 0.7."""
    assert model.rate(lambda rng: users(NEW, rng, offset=0.6)) >= 0.95


def test_users_farther_from_their_centroids_are_flagged(model: Model) -> None:
    assert model.rate(lambda rng: users(NEW, rng, spread=0.9)) >= 0.95


def test_each_shift_shows_in_its_own_measure(model: Model) -> None:
    rng = np.random.default_rng(3)
    assert model.verdicts(users(NEW, rng, mix=(0.5, 0.5, 0, 0, 0, 0)))["shares of segments"] == "drifted"
    assert model.verdicts(users(NEW, rng, offset=1.0))["embeddings"] == "drifted"
    assert model.verdicts(users(NEW, rng, spread=1.0))["distances to centroids"] == "drifted"
    assert model.verdicts(users(NEW, rng, spread=1.4))["share in doubt"] == "drifted"


def test_the_index_of_known_shares() -> None:
    """Shares (0.5, 0.5) and (0.9, 0.1) of very many users: 0.4 ln 9."""
    measure = psi("x", np.array([500_000, 500_000]), np.array([900_000, 100_000]))
    assert measure.value == pytest.approx(0.4 * np.log(9), abs=1e-4)
    assert measure.verdict == "drifted"


def test_an_empty_share_has_a_finite_index() -> None:
    assert np.isfinite(psi("x", np.array([100, 0]), np.array([0, 100])).value)


def test_one_segment_alone_cannot_move() -> None:
    assert psi("x", np.array([100]), np.array([20])).verdict == "stable"


def test_few_users_need_a_larger_shift() -> None:
    """The same shares, of 20 users and of 2,000."""
    then = np.array([500, 500])
    few, many = psi("x", then, np.array([6, 14])), psi("x", then, np.array([600, 1400]))
    assert few.value > 0.1
    assert (few.verdict, many.verdict) == ("stable", "moved")


def test_the_index_of_normal_embeddings_is_the_squared_shift() -> None:
    """One direction of variance 4, and a mean that is 3 away: (3 / 2)²."""
    reference = DriftReference(
        user_count=1000,
        mean_events=5,
        mean_distance=1,
        distance_edges=(),
        distance_users=(1000,),
        doubtful_users=None,
        center=(1.0, 1.0),
        directions=((1.0, 0.0),),
        variances=(4.0,),
    )
    points = np.repeat([[4.0, 7.0], [4.0, -7.0]], 100_000, axis=0)
    assert embedding_shift(reference, points).value == pytest.approx(2.25, abs=0.002)


def test_the_mean_that_chance_gives_is_taken_off() -> None:
    """Over many draws of two samples of one population the index is about 0 where it is not cut off at 0."""
    rng = np.random.default_rng(0)
    shares = np.full(8, 1 / 8)
    values = [psi("x", rng.multinomial(400, shares), rng.multinomial(100, shares)).value for _ in range(400)]
    assert np.mean(values) < 0.02
    assert 0.3 < np.mean(np.array(values) == 0) < 0.7


def test_unknown_events_count_from_their_limit_on() -> None:
    found = [unknown_share("x", share, list(range(1000))).verdict for share in (0.0, 0.06, 0.1, 0.3)]
    assert found == ["stable", "stable", "moved", "drifted"]
    assert unknown_share("x", 0.1, [0] * 10).verdict == "stable"


def test_the_reference_of_users_holds_groups_only(model: Model) -> None:
    reference = model.reference
    assert sum(reference.distance_users) == USERS
    assert min(reference.distance_users) >= 50
    assert len(reference.distance_users) == 10
    assert reference.histogram(nearest(model.users, model.centroids).first_distance).tolist() == [
        *reference.distance_users
    ]
    assert 0 < len(reference.directions) < USERS / 10
    np.testing.assert_allclose(np.linalg.norm(reference.directions, axis=1), 1)
    assert list(reference.variances) == sorted(reference.variances, reverse=True)
    assert DriftReference.model_validate_json(reference.model_dump_json()) == reference


def test_equal_distances_share_a_bin_whatever_their_last_digits() -> None:
    rng = np.random.default_rng(0)
    tied = np.repeat([0.2, 0.4, 0.7], [400, 420, 180])
    points = normalised(rng.normal(size=(1000, 4)))
    reference = reference_of(points, tied, np.ones(1000, np.int64), None, 50)
    assert reference.distance_users == (400, 420, 180)
    noisy = tied + rng.normal(scale=1e-7, size=1000)
    assert reference.histogram(noisy).tolist() == [400, 420, 180]


def test_no_bin_holds_few_users() -> None:
    """A third of the users are at one distance, so that a tenth of all ends just behind them."""
    rng = np.random.default_rng(0)
    distances = np.concatenate([np.full(380, 0.3), 0.3 + rng.random(620)])
    reference = reference_of(normalised(rng.normal(size=(1000, 4))), distances, np.ones(1000, np.int64), None, 90)
    assert min(reference.distance_users) >= 90
    assert sum(reference.distance_users) == 1000


def test_users_who_are_all_alike_have_no_directions() -> None:
    points = np.tile([1.0, 0.0], (100, 1))
    reference = reference_of(points, np.zeros(100), np.ones(100, np.int64), None, 50)
    assert reference.directions == ()
    assert embedding_shift(reference, points).verdict == "stable"


def test_verdicts_rise() -> None:
    assert VERDICTS == ("stable", "moved", "drifted")
