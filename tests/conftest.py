"""Fixtures that several test folders use."""

pytest_plugins = [
    "tests.support.triton",
    "tests.support.server",
    "tests.support.training",
    "tests.support.dask_cluster",
    "tests.support.browser",
    "tests.support.collector",
    "tests.support.postgres_server",
    "tests.support.client_cli",
]
