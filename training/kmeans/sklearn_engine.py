"""K-means by scikit-learn, on all cores of one machine."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from training.kmeans.settings import EngineFit, KMeansSettings


def fit(points: NDArray[np.float32], k: int, settings: KMeansSettings, start: NDArray[np.float32] | None) -> EngineFit:
    """The best of all restarts; with `start` centroids (K, D) there is only one run.

    Restarts share one stream of random numbers, so they equal those of `KMeans(n_init=restarts, random_state=seed)`.
    """
    model = KMeans(
        k,
        init="k-means++" if start is None else start,
        n_init=1,
        max_iter=settings.max_iterations,
        random_state=np.random.RandomState(settings.seed),
    )
    restarts = settings.restarts if start is None else 1
    return min((_fitted(model, points) for _ in range(restarts)), key=lambda run: run.inertia)


def _fitted(model: KMeans, points: NDArray[np.float32]) -> EngineFit:
    with warnings.catch_warnings():
        # The warning is about fewer distinct points than clusters; `fit_kmeans` drops centroids without points.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points)
    return EngineFit(model.cluster_centers_, float(model.inertia_), int(model.n_iter_))
