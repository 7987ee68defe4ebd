"""What an encoder has to show, and the process apart in which it does."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from server.core.repository.layout import OUTPUT
from server.core.repository.read import read_release
from tests.support.releases import tiny_release
from training.config import PublishSettings
from training.errors import PublishError
from training.publish.gates import check_release
from training.publish.model_checks import check_model
from training.publish.sandbox import SandboxLimits, run_in_sandbox

ENOUGH = SandboxLimits(8 << 30, 60)


def proved(directory: Path, name: str = "model.onnx") -> dict[str, float]:
    model = (directory / name).rename(directory.parent / name) if name != "model.onnx" else directory / name
    release = read_release(directory)
    manifest = release.manifest
    found = check_model(model, manifest.golden, release.preprocessing, manifest.item_count)
    return {key: float(value) for key, value in found.items()}


def changed(tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A tiny release whose model's file was changed after its manifest was read."""
    directory = tiny_release(tmp_path)
    model = onnx.load(str(directory / "model.onnx"))
    change(model)
    (directory / "changed.onnx").write_bytes(model.SerializeToString())
    return directory


def prove_changed(tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    proved(changed(tmp_path, change), "changed.onnx")


def test_a_good_encoder_proves_itself(tmp_path: Path) -> None:
    found = proved(tiny_release(tmp_path))
    assert found["golden"] < 1e-6
    assert found["alone"] < 1e-5
    assert found["random"] == 3 * 8 * len({1, 2, 3, 7, 16, 31, 32})


def custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "evil.corp"
    model.opset_import.append(helper.make_opsetid("evil.corp", 1))


def custom_operator_in_a_branch(model: onnx.ModelProto) -> None:
    inner = helper.make_node("Run", [], ["x"], domain="evil.corp")
    branch = helper.make_graph([inner], "branch", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))


def external_weights(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_constant(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "hidden")
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=tensor))


def loose_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (custom_operator, "uses the operator .* of evil.corp, which Triton does not have"),
        (custom_operator_in_a_branch, "uses the operator Run of evil.corp"),
        (external_weights, "weights in another file"),
        (external_constant, "weights in another file"),
    ],
)
def test_a_file_that_needs_others_is_refused(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        prove_changed(tmp_path, change)


def test_a_file_that_is_no_valid_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(onnx.checker.ValidationError):
        prove_changed(tmp_path, loose_input)


def after_output(model: onnx.ModelProto, *operators: onnx.NodeProto) -> None:
    """Put operators between what the model computes, now `inner`, and its output."""
    for node in model.graph.node:
        node.output[:] = ["inner" if name == OUTPUT else name for name in node.output]
    model.graph.node.extend(operators)


def not_finite_for_long_histories(model: onnx.ModelProto) -> None:
    """The reciprocal of 0 where the first of 32 events is not padding: the golden inputs are of 8."""
    zero = numpy_helper.from_array(np.zeros((), np.float32), "nothing")
    model.graph.initializer.append(zero)
    shape = helper.make_node("Shape", ["item_index"], ["shape"], start=1, end=2)
    limit = numpy_helper.from_array(np.array([32], np.int64), "limit")
    model.graph.initializer.append(limit)
    nodes = [
        shape,
        helper.make_node("Less", ["shape", "limit"], ["short"]),
        helper.make_node("Cast", ["short"], ["as_number"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["as_number", "as_number"], ["one_or_nan"]),
        helper.make_node("Mul", ["inner", "one_or_nan"], [OUTPUT]),
    ]
    after_output(model, *nodes)


def mixing(model: onnx.ModelProto) -> None:
    """The mean of the batch is added to each."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first_axis"))
    mean = helper.make_node("ReduceMean", ["inner", "first_axis"], ["mean"], keepdims=1)
    after_output(model, mean, helper.make_node("Add", ["inner", "mean"], [OUTPUT]))


def test_numbers_that_are_not_finite_at_some_length_are_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not finite for \d+ histories of 32 events"):
        prove_changed(tmp_path, not_finite_for_long_histories)


def test_an_encoder_that_mixes_histories_is_found(tmp_path: Path) -> None:
    assert proved(changed(tmp_path, mixing), "changed.onnx")["alone"] > 0.1


def test_a_model_that_is_too_large_is_told(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=r"bytes, and \[publish\] max_model_bytes allows 1,000"):
        check_release(tiny_release(tmp_path), PublishSettings(max_model_bytes=1000))


def doubled(values: NDArray[np.float64]) -> dict[str, NDArray[np.generic]]:
    return {"twice": 2 * values}


def failing() -> dict[str, NDArray[np.generic]]:
    raise ValueError("first line\nsecond line")


def greedy() -> dict[str, NDArray[np.generic]]:
    return {"much": np.ones(1 << 31)}


def endless() -> dict[str, NDArray[np.generic]]:
    threading.Event().wait()
    return {}


def writing(path: Path) -> dict[str, NDArray[np.generic]]:
    path.write_text("x")
    return {}


def dying() -> dict[str, NDArray[np.generic]]:
    os.abort()


def test_work_apart_returns_arrays() -> None:
    assert run_in_sandbox(ENOUGH, doubled, np.arange(3.0))["twice"].tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("limits", "work", "problem"),
    [
        (ENOUGH, failing, "^first line$"),
        (SandboxLimits(4 << 30, 60), greedy, "too much memory|Unable to allocate"),
        (ENOUGH, dying, "was ended"),
    ],
)
def test_failed_work_reports_its_error(
    limits: SandboxLimits, work: Callable[[], dict[str, NDArray[np.generic]]], problem: str
) -> None:
    with pytest.raises(PublishError, match=problem):
        run_in_sandbox(limits, work)


def test_work_without_an_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.publish.sandbox._GRACE_SECONDS", 0.0)
    with pytest.raises(PublishError, match=r"more than 0\.1 s"):
        run_in_sandbox(SandboxLimits(8 << 30, 0.1), endless)


def test_work_apart_cannot_write_files(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="File too large"):
        run_in_sandbox(ENOUGH, writing, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""
