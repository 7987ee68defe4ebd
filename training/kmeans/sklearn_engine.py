"""K-means by scikit-learn: one machine, all of its cores, Lloyd's iterations with k-means++ or random starts."""

import contextlib
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from training.kmeans.seeding import resized
from training.kmeans.settings import Found, KMeansSettings

_ITERATION = re.compile(r"^Iteration \d+, inertia (\S+)\.$", re.MULTILINE)


def sklearn_arguments(
    k: int, settings: KMeansSettings, start: NDArray[np.float32] | None, random_state: Any
) -> dict[str, Any]:
    """Our settings in the words of `sklearn.cluster.KMeans`, for one restart."""
    return {
        "n_clusters": k,
        "init": settings.start if start is None else start,
        "n_init": 1,
        "max_iter": settings.max_iterations,
        "tol": settings.tolerance,
        "random_state": random_state,
        "algorithm": "lloyd",
        "verbose": 1,
    }


def fit(
    points: NDArray[np.float32], k: int, settings: KMeansSettings, previous: NDArray[np.float32] | None = None
) -> Found:
    """The best of all restarts; from `previous` centroids there is one.

    Restarts share one stream of random numbers, so they are those of `KMeans(n_init=restarts, random_state=seed)`.
    """
    random = np.random.RandomState(settings.seed)
    if previous is not None:
        start = resized(points, previous, k, settings.seed)
        return _fitted(points, sklearn_arguments(len(start), settings, start, random))
    arguments = sklearn_arguments(k, settings, None, random)
    return min((_fitted(points, arguments) for _ in range(settings.restarts)), key=lambda found: found.inertia)


def _fitted(points: NDArray[np.float32], arguments: dict[str, Any]) -> Found:
    with warnings.catch_warnings(), _printed() as lines:
        # Fewer distinct points than clusters: the empty ones are dropped, and the result shows it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(**arguments).fit(points)
    history = tuple(map(float, _ITERATION.findall("".join(lines))))
    return Found(model.cluster_centers_, float(model.inertia_), int(model.n_iter_), history)


class _Listening:
    """Standard output that keeps what one thread prints; what other threads print goes on to where it went before."""

    def __init__(self, stream: Any) -> None:
        self.lines: list[str] = []
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        """Keep or pass on."""
        if threading.get_ident() != self._thread:
            return cast(int, self._stream.write(text))
        self.lines.append(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _printed() -> Iterator[list[str]]:
    """What this thread prints: the only way in which scikit-learn tells the inertia of each iteration."""
    listening = _Listening(sys.stdout)
    with contextlib.redirect_stdout(cast(Any, listening)):
        yield listening.lines
