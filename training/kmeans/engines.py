"""The K-means engines, which of them can run on this machine, and the choice between them."""

import ctypes
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Literal

from training.errors import ConfigError

Engine = Literal["sklearn", "dask", "cuml", "cuml_dask"]


def choose_engine(requested: Literal["auto", "sklearn", "dask", "cuml", "cuml_dask"]) -> Engine:
    """The engine to use; `auto` is cuML if it can run, else sklearn. Raises ConfigError if a named one cannot."""
    if requested == "auto":
        return "sklearn" if cuml_problem() else "cuml"
    problems = {"dask": dask_problem, "cuml": cuml_problem, "cuml_dask": cuml_dask_problem}
    if requested in problems and (problem := problems[requested]()):
        raise ConfigError(problem)
    return requested


def on_one_machine(engine: Engine) -> Engine:
    """The engine for the same hardware without a cluster; for small inputs such as a sample."""
    return {"dask": "sklearn", "cuml_dask": "cuml"}.get(engine, engine)  # type: ignore[return-value]


def dask_problem() -> str:
    """Why Dask cannot run here; empty when it can."""
    if all(importlib.util.find_spec(name) for name in ("dask", "distributed")):
        return ""
    return "K-means engine dask is not installed; install segrec-platform[dask], or use sklearn."


def cuml_problem(load_driver: Callable[[str], Any] = ctypes.CDLL) -> str:
    """Why cuML cannot run on this machine; empty when it can.

    The driver is checked first, because cuML can be imported without a GPU and fails only in `fit`.
    """
    try:
        driver = load_driver("libcuda.so.1")
    except OSError:
        return "K-means engine cuml needs an NVIDIA GPU, and this machine has no driver (libcuda.so.1); use sklearn."
    count = ctypes.c_int(0)
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return f"K-means engine cuml needs an NVIDIA GPU, and the driver returned error {status}; use sklearn."
    if not count.value:
        return "K-means engine cuml needs an NVIDIA GPU, and the driver found none; use sklearn."
    try:
        usable = importlib.import_module("cupy").cuda.is_available()
        importlib.import_module("cuml.cluster")
    except (ImportError, OSError) as error:
        return (
            f"K-means engine cuml is not installed ({error}); install segrec-platform[gpu] in its own environment, or "
            "use sklearn."
        )
    return "" if usable else "K-means engine cuml needs a GPU that CuPy can use, and CuPy found none; use sklearn."


def cuml_dask_problem() -> str:
    """Why cuML cannot run over Dask on this machine; empty when it can."""
    if problem := cuml_problem():
        return problem.replace("K-means engine cuml", "K-means engine cuml_dask")
    try:
        for name in ("cuml.dask.cluster", "dask_cuda"):
            importlib.import_module(name)
    except (ImportError, OSError) as error:
        return (
            f"K-means engine cuml_dask is not installed ({error}); install cuml-cu13[dask] and dask-cuda, or use cuml."
        )
    return ""
