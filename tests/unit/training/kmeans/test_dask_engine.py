"""K-means over parts: equal to scikit-learn from the same start, and from files."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from server.core.segments import normalised
from training.errors import ConfigError, LogError
from training.kmeans.cuml_engine import blocks, cuml_problem
from training.kmeans.cuml_engine import fit_parts as fit_on_gpus
from training.kmeans.dask_engine import Partwise, client_on, lloyd, parts_for, scalable_plus_plus
from training.kmeans.fit import fit_files, fit_kmeans
from training.kmeans.partitions import Partition, partition_shape, parts_of
from training.kmeans.settings import KMeansSettings

WARM = KMeansSettings(start="previous", rows_at_once=250)


def cloud(rows: int = 600, dim: int = 6, seed: int = 1) -> NDArray[np.float32]:
    return normalised(np.random.default_rng(seed).normal(size=(rows, dim)) + 0.5).astype(np.float32)


def saved(directory: Path, points: NDArray[np.floating]) -> Path:
    np.save(directory / "points.npy", points)
    return directory / "points.npy"


def over(client: Any, path: Path, rows_at_once: int = 250) -> Partwise:
    return Partwise.over(client, parts_of([path], rows_at_once))


def by_sklearn(points: NDArray[np.float32], start: NDArray[np.float32]) -> KMeans:
    return KMeans(len(start), init=start, n_init=1, random_state=0).fit(points)


@pytest.mark.parametrize("tolerance", [0.0, 1e-4])
def test_from_the_same_start_it_is_sklearn(dask_client: Any, tolerance: float) -> None:
    points = cloud(2_000, 16)
    start = points[:20]
    theirs = KMeans(20, init=start, n_init=1, tol=tolerance).fit(points)
    settings = KMeansSettings(start="previous", rows_at_once=700, tolerance=tolerance)
    ours = fit_kmeans(points, 20, engine="dask", settings=settings, previous=start)
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-5)
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    assert ours.iterations == theirs.n_iter_
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)


def test_both_engines_tell_the_same_history(dask_client: Any) -> None:
    points = cloud()
    one, other = (
        fit_kmeans(points, 9, engine=engine, settings=WARM, previous=points[:9]) for engine in ("sklearn", "dask")
    )
    np.testing.assert_allclose(one.history, other.history, rtol=1e-5)
    assert len(other.shifts) == other.iterations
    assert not one.shifts


def test_centroids_that_lost_their_points_go_where_sklearn_puts_them(dask_client: Any) -> None:
    points = cloud()
    start = np.concatenate([points[:4], np.full((2, 6), 9, np.float32)])
    theirs = by_sklearn(points, start)
    ours = fit_kmeans(points, 6, engine="dask", settings=WARM, previous=start)
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-5)


@pytest.mark.parametrize("rows_at_once", [150, 600, None])
def test_parts_of_any_size_give_the_same(dask_client: Any, rows_at_once: int | None) -> None:
    points = cloud()
    whole = fit_kmeans(points, 5, engine="dask", settings=WARM, previous=points[:5])
    settings = KMeansSettings(start="previous", rows_at_once=rows_at_once)
    parts = fit_kmeans(points, 5, engine="dask", settings=settings, previous=points[:5])
    np.testing.assert_allclose(parts.centroids, whole.centroids, atol=1e-6)


def test_points_far_from_zero_lose_no_digits(dask_client: Any, tmp_path: Path) -> None:
    points = cloud().astype(np.float64)
    near, far = (saved(made(tmp_path / str(shift)), points + shift) for shift in (0, 100))
    results = [
        lloyd(over(dask_client, path), points[:5] - points.mean(axis=0), KMeansSettings()) for path in (near, far)
    ]
    assert results[0].inertia == pytest.approx(results[1].inertia, rel=1e-4)


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def test_files_of_both_kinds_are_one_set_of_points(dask_client: Any, tmp_path: Path) -> None:
    points = cloud()
    whole = fit_files([saved(tmp_path, points)], 5, settings=WARM, previous=points[:5])
    np.save(tmp_path / "first.npy", points[:100])
    pl.DataFrame(points[100:350]).write_parquet(tmp_path / "columns.parquet")
    pl.DataFrame({"embedding": points[350:]}).write_parquet(tmp_path / "arrays.parquet")
    paths = [tmp_path / name for name in ("first.npy", "columns.parquet", "arrays.parquet")]
    parts = fit_files(paths, 5, settings=WARM, previous=points[:5])
    np.testing.assert_allclose(parts.centroids, whole.centroids, atol=1e-6)
    np.testing.assert_array_equal(parts.labels, whole.labels)
    in_memory = fit_kmeans(points, 5, engine="dask", settings=WARM, previous=points[:5])
    np.testing.assert_array_equal(in_memory.labels, whole.labels)
    assert whole.inertia == pytest.approx(in_memory.inertia)


def test_labels_of_files_are_numbered_without_the_empty(dask_client: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, np.repeat(np.eye(4)[:2], 10, axis=0))
    start = np.array([[9, 9, 9, 9], [1, 0, 0, 0], [0, 1, 0, 0]])
    result = fit_files([path], 3, settings=WARM, previous=start)
    np.testing.assert_array_equal(result.centroids, np.eye(4)[:2])
    np.testing.assert_array_equal(result.labels, np.repeat([0, 1], 10))


def test_a_part_is_all_that_is_read_at_a_time(
    dask_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    read = Partition.read

    def told(part: Partition) -> NDArray[np.float32]:
        points = read(part)
        sizes.append(len(points))
        return points

    monkeypatch.setattr(Partition, "read", told)
    fit_files([saved(tmp_path, cloud())], 5, settings=KMeansSettings(rows_at_once=150, restarts=1, max_iterations=2))
    assert max(sizes) == 150


def test_scalable_plus_plus_finds_far_groups_and_is_better_than_chance(dask_client: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(30, 8)) * 20
    points = (centers[rng.integers(0, 30, 3_000)] + rng.normal(size=(3_000, 8))).astype(np.float32)
    data = over(dask_client, saved(tmp_path, points), 1_000)
    start = scalable_plus_plus(data, np.empty((0, 8)), 30, KMeansSettings(), 0) + data.moments.mean
    groups = ((start[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
    assert len(set(groups.tolist())) >= 29
    chosen = points[rng.choice(3_000, 30, replace=False)]
    found, by_chance = (
        sum(((points - part[:, None]) ** 2).sum(axis=2).min(axis=0)) for part in (start.astype(np.float32), chosen)
    )
    assert found < by_chance / 2


@pytest.mark.parametrize("oversampling", [0.01, 0.5, 8.0])
def test_there_are_enough_candidates_however_few_are_asked_for(
    dask_client: Any, tmp_path: Path, oversampling: float
) -> None:
    data = over(dask_client, saved(tmp_path, cloud()))
    start = scalable_plus_plus(data, np.empty((0, 6)), 25, KMeansSettings(oversampling=oversampling), 0)
    assert len(np.unique(start, axis=0)) == 25


def test_missing_centroids_are_added_and_the_others_stay(dask_client: Any, tmp_path: Path) -> None:
    data = over(dask_client, saved(tmp_path, cloud()))
    chosen = cloud(3, 6, seed=5) - data.moments.mean
    start = scalable_plus_plus(data, chosen, 4, KMeansSettings(), 0)
    assert start.shape == (7, 6)
    np.testing.assert_allclose(start[:3], chosen)


def test_rows_are_those_at_their_places(dask_client: Any, tmp_path: Path) -> None:
    points, places = cloud(), np.array([0, 249, 250, 251, 599])
    data = over(dask_client, saved(tmp_path, points))
    np.testing.assert_allclose(data.rows(places) + data.moments.mean, points[places], atol=1e-7)


def test_random_starts_are_different_points(dask_client: Any, tmp_path: Path) -> None:
    settings = KMeansSettings(start="random", restarts=1, max_iterations=1)
    result = fit_files([saved(tmp_path, np.eye(12))], 12, settings=settings)
    assert result.inertia == pytest.approx(0, abs=1e-6)
    assert len(result.centroids) == 12


def test_the_client_of_the_caller_is_taken_and_left_running(dask_client: Any) -> None:
    with client_on(lambda: pytest.fail("a cluster was started")) as client:
        assert client is dask_client
    assert dask_client.status == "running"


def test_each_worker_has_a_part_unless_rows_are_named(dask_client: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, cloud(601))
    assert [len(part) for part in parts_for(dask_client, [path], KMeansSettings())] == [301, 300]
    named = parts_for(dask_client, [path], KMeansSettings(rows_at_once=250))
    assert [len(part) for part in named] == [250, 250, 101]


def test_cuml_is_given_the_parts_as_chunks(dask_client: Any, tmp_path: Path) -> None:
    points = cloud()
    array = blocks(parts_of([saved(tmp_path, points)], 250), on_gpu=False)
    assert array.chunks == ((250, 250, 100), (6,))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array.compute(), points)


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (lambda path: np.save(path, np.zeros(3)), "an array of 1 dimensions"),
        (lambda path: np.save(path, np.zeros((0, 3))), r"no points in bad\.npy"),
        (lambda path: path.write_text("no numbers"), "cannot be read as points"),
        (lambda path: None, "cannot be read as points"),
        (lambda path: np.save(path, np.array([["a", "b"]])), "not numbers"),
    ],
)
def test_files_without_points_are_said(tmp_path: Path, write: Any, why: str) -> None:
    write(tmp_path / "bad.npy")
    with pytest.raises(LogError, match=why):
        partition_shape([tmp_path / "bad.npy"])


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.int8])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_kind_are_read(tmp_path: Path, kind: type[np.number], order: Any) -> None:
    points = np.array(np.arange(30).reshape(10, 3), kind, order=order)
    parts = parts_of([saved(tmp_path, points)], 4)
    assert [len(part) for part in parts] == [4, 4, 2]
    for part in parts:
        assert part.read().dtype == np.float32
        np.testing.assert_array_equal(part.read(), points[part.start : part.stop])


def test_reading_a_part_parses_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that parse Python at a time are a fault of Python 3.11 waiting to happen."""
    [part] = parts_of([saved(tmp_path, cloud())], 1_000)
    monkeypatch.setattr(ast, "parse", lambda *_args, **_kwargs: pytest.fail("a header was parsed"))
    assert part.read().shape == (600, 6)


def test_empty_files_among_others_do_not_matter(tmp_path: Path) -> None:
    pl.DataFrame({"x": []}).write_parquet(tmp_path / "empty.parquet")
    paths = [tmp_path / "empty.parquet", saved(tmp_path, cloud())]
    assert partition_shape(paths) == (600, 6)
    assert [part.path.name for part in parts_of(paths, 1_000)] == ["points.npy"]


def test_files_of_different_dimensions_are_said(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    np.save(tmp_path / "b.npy", np.zeros((2, 4)))
    with pytest.raises(LogError, match=r"a\.npy has 3, b\.npy has 4"):
        partition_shape([tmp_path / "a.npy", tmp_path / "b.npy"])


def test_the_first_rows_of_a_part_are_read_alone(tmp_path: Path) -> None:
    points = cloud()
    part = parts_of([saved(tmp_path, points)], 250)[1]
    np.testing.assert_array_equal(part.first(3).read(), points[250:253])
    assert len(part.first(1_000)) == len(part) == 250


@pytest.mark.skipif(not cuml_problem(), reason="cuML can run here")
def test_workers_that_cannot_load_cuml_are_told_of(dask_client: Any, tmp_path: Path) -> None:
    parts = parts_of([saved(tmp_path, cloud())], 250)
    with pytest.raises(ConfigError, match=r"A worker of K-means engine cuml_dask cannot load cuML \(No module"):
        fit_on_gpus(dask_client, parts, 5, KMeansSettings())
