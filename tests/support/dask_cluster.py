"""A Dask cluster inside the test process: two workers that are threads, so that nothing need be started."""

from collections.abc import Iterator
from typing import Any

import distributed
import pytest


@pytest.fixture(scope="module")
def dask_client() -> Iterator[Any]:
    """The current client for as long as the tests of a module run."""
    options: dict[str, Any] = {
        "n_workers": 2,
        "threads_per_worker": 1,
        "processes": False,
        "dashboard_address": "127.0.0.1:0",
    }
    kinds: Any = distributed
    with kinds.LocalCluster(**options) as cluster, kinds.Client(cluster) as client:
        yield client
