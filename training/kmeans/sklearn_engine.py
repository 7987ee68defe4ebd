"""K-means by scikit-learn: one machine and all of its cores."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from training.kmeans.settings import Found, KMeansSettings


def fit(points: NDArray[np.float32], k: int, settings: KMeansSettings, start: NDArray[np.float32] | None) -> Found:
    """The best of all restarts; one where there are centroids (K, D) to start from.

    Restarts share one stream of random numbers, so they are those of `KMeans(n_init=restarts, random_state=seed)`.
    """
    model = KMeans(
        k,
        init="k-means++" if start is None else start,
        n_init=1,
        max_iter=settings.max_iterations,
        random_state=np.random.RandomState(settings.seed),
    )
    restarts = settings.restarts if start is None else 1
    return min((_fitted(model, points) for _ in range(restarts)), key=lambda found: found.inertia)


def _fitted(model: KMeans, points: NDArray[np.float32]) -> Found:
    with warnings.catch_warnings():
        # Fewer distinct points than clusters: centroids without points are dropped, and the result shows it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points)
    return Found(model.cluster_centers_, float(model.inertia_), int(model.n_iter_))
