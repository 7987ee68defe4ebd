"""Which K-means engine is chosen, and why one cannot run."""

import ctypes
import importlib
from typing import Any

import pytest

from training.errors import ConfigError
from training.kmeans import engines
from training.kmeans.engines import Engine, choose_engine, cuml_dask_problem, cuml_problem, on_one_machine


class Driver:
    """A stand-in for libcuda: what `cuInit` returns, and how many devices it counts."""

    def __init__(self, status: int, devices: int) -> None:
        self.status = status
        self.devices = devices

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self.devices
        return 0


def missing(name: str) -> Driver:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    ("load", "why"),
    [
        (missing, "no driver"),
        (lambda name: Driver(100, 0), "error 100"),
        (lambda name: Driver(0, 0), "found none"),
    ],
)
def test_the_driver_gives_the_reason_why_cuml_cannot_run(load: Any, why: str) -> None:
    assert why in cuml_problem(load)


def test_a_missing_library_on_a_gpu_machine_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", no_module)
    assert "not installed (No module named 'cupy')" in cuml_problem(lambda name: Driver(0, 1))


def test_cuml_over_dask_reports_its_own_name_and_the_missing_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "cuml_problem", lambda: "K-means engine cuml needs an NVIDIA GPU.")
    assert cuml_dask_problem() == "K-means engine cuml_dask needs an NVIDIA GPU."
    monkeypatch.setattr(engines, "cuml_problem", lambda: "")
    monkeypatch.setattr(importlib, "import_module", missing)
    assert "cuml_dask is not installed (cuml.dask.cluster: cannot open" in cuml_dask_problem()


def test_auto_takes_sklearn_where_cuml_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "cuml_problem", lambda: "no GPU here.")
    assert choose_engine("auto") == "sklearn"
    with pytest.raises(ConfigError, match="no GPU here"):
        choose_engine("cuml")
    with pytest.raises(ConfigError, match="no GPU here"):
        choose_engine("cuml_dask")


def test_auto_takes_cuml_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "cuml_problem", lambda: "")
    assert choose_engine("auto") == "cuml"
    assert choose_engine("cuml") == "cuml"


def test_a_named_engine_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine("sklearn") == "sklearn"
    assert choose_engine("dask") == "dask"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"install segrec-platform\[dask\]"):
        choose_engine("dask")


def test_a_sample_stays_on_one_machine() -> None:
    names: list[Engine] = ["sklearn", "dask", "cuml", "cuml_dask"]
    assert [on_one_machine(name) for name in names] == ["sklearn", "sklearn", "cuml", "cuml"]
