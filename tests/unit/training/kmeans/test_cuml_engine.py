"""Settings in the words of cuML, and the points on a Dask cluster; the fits are in `test_fit`, where there is a GPU."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from server.core.segments import normalised
from training.errors import ConfigError
from training.kmeans.cuml_engine import cuml_arguments, cuml_tolerance, dask_array, require_cuml
from training.kmeans.engines import cuml_problem
from training.kmeans.fit import fit_kmeans
from training.kmeans.settings import KMeansSettings, allowed_shift


def cloud() -> NDArray[np.float32]:
    return normalised(np.random.default_rng(1).normal(size=(601, 6)) + 0.5).astype(np.float32)


def test_settings_as_arguments_of_cuml() -> None:
    arguments = cuml_arguments(cloud(), 2, KMeansSettings(3, 50, 5), None)
    assert arguments == {
        "n_clusters": 2,
        "init": "k-means||",
        "n_init": 3,
        "max_iter": 50,
        "tol": allowed_shift(cloud()) / 2,
        "random_state": 5,
    }


def test_cuml_starts_once_from_given_centroids() -> None:
    start = np.eye(6, dtype=np.float32)
    arguments = cuml_arguments(cloud(), 6, KMeansSettings(), start)
    assert arguments["n_init"] == 1
    assert arguments["init"] is start


def test_the_tolerance_ends_no_run_earlier_than_the_other_engines_do() -> None:
    points, k = cloud(), 12
    inertia = fit_kmeans(points, k, settings=KMeansSettings(restarts=1)).inertia
    moves = allowed_shift(points)
    assert 0 < cuml_tolerance(points, k) <= moves
    assert cuml_tolerance(points, k) <= len(points) / k * moves / inertia, "the share of inertia that such moves save"


def test_the_tolerance_is_above_0_where_all_points_are_equal() -> None:
    assert 0 < cuml_tolerance(np.ones((5, 3), np.float32), 2) < 1e-11


def test_each_worker_gets_a_chunk(dask_client: Any) -> None:
    array = dask_array(dask_client, cloud(), np)
    assert array.chunks == ((301, 300), (6,))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array.compute(), cloud())


@pytest.mark.skipif(not cuml_problem(), reason="cuML can run here")
def test_a_worker_that_cannot_load_cuml_is_an_error(dask_client: Any) -> None:
    with pytest.raises(ConfigError, match=r"A worker of K-means engine cuml_dask cannot load cuML \(No module"):
        require_cuml(dask_client)
