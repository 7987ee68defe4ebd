import numpy as np
from sklearn.metrics import pairwise_distances

from server.core.segments import Nearest, margin, nearest, normalised


def test_the_nearest_and_the_runner_up_are_found() -> None:
    centroids = np.eye(3, dtype=np.float32)
    found = nearest(np.array([[5.0, 1.0, 0.0], [0.0, 1.0, 3.0]], np.float32), centroids)
    assert found.first.tolist() == [0, 2]
    assert found.second.tolist() == [1, 1]


def test_distances_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(200, 16)).astype(np.float32)
    centroids = (normalised(rng.normal(size=(8, 16)).astype(np.float32)) * 0.9).astype(np.float32)
    found = nearest(embeddings, centroids)
    expected = np.sort(pairwise_distances(normalised(embeddings), centroids.astype(np.float64)), axis=1)
    np.testing.assert_allclose(found.first_distance, expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(found.second_distance, expected[:, 1], atol=1e-12)


def test_a_point_on_its_centroid_is_at_distance_zero() -> None:
    centroids = normalised(np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)).astype(np.float32)
    np.testing.assert_allclose(nearest(centroids * 7, centroids).first_distance, 0.0, atol=1e-6)


def test_one_segment_is_its_own_runner_up() -> None:
    found = nearest(np.ones((2, 3), np.float32), np.ones((1, 3), np.float32))
    assert found.first.tolist() == found.second.tolist() == [0, 0]


def test_a_zero_embedding_has_a_finite_distance() -> None:
    found = nearest(np.zeros((1, 2), np.float32), np.eye(2, dtype=np.float32))
    assert found.first_distance.tolist() == [1.0]


def test_the_margin_is_0_in_the_middle_and_1_on_a_centroid() -> None:
    centroids = np.eye(2, dtype=np.float32)
    points = np.array([[1.0, 1.0], [1.0, 0.0], [4.0, 3.0]], np.float32)
    found = margin(nearest(points, centroids))
    near, far = np.hypot(0.2, 0.6), np.hypot(0.8, 0.4)
    np.testing.assert_allclose(found, [0.0, 1.0, (far - near) / (far + near)], atol=1e-6)


def test_with_one_segment_the_margin_is_1() -> None:
    assert margin(nearest(np.ones((2, 3), np.float32), np.ones((1, 3), np.float32))).tolist() == [1.0, 1.0]


def test_a_point_on_two_equal_centroids_has_margin_0() -> None:
    zero = np.zeros(1)
    assert margin(Nearest(np.array([0]), zero, np.array([1]), zero)).tolist() == [0.0]
