"""Where no Dask client is at hand, K-means starts worker processes of its own, and ends them."""

from typing import Any

import distributed
import numpy as np
import psutil
import pytest
from sklearn.metrics import adjusted_rand_score

from server.core.segments import normalised
from training.kmeans.fit import fit_kmeans
from training.kmeans.settings import KMeansSettings


def test_workers_are_started_and_ended() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 50)
    points = normalised(np.eye(4)[truth] + rng.normal(scale=0.05, size=(150, 4)))
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    result = fit_kmeans(points, 3, engine="dask", settings=KMeansSettings(restarts=1))
    assert adjusted_rand_score(truth, result.labels) == 1.0
    client: Any = distributed.Client
    with pytest.raises(ValueError, match="No clients found"):
        client.current()
    left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
    assert not [process for process in left if "nanny" in " ".join(process.cmdline()).lower()]
