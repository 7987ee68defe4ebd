"""The embedded Triton without starting it: environment, options of the backend, requests and responses."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2
from typer.testing import CliRunner

from server.adapters.embedded_triton import check_environment, environment, install_environment
from server.adapters.embedded_triton.cli import app, main
from server.adapters.embedded_triton.process import log_tail
from server.adapters.triton import (
    DATA_TYPES,
    build_load_request,
    build_request,
    read_config,
    read_embeddings,
)
from server.core.errors import EncoderUnavailable, SetupError
from server.core.repository.layout import MODEL_NAME, OUTPUT
from tests.support.onnx_models import random_inputs, write_tiny_encoder
from tests.support.triton import ROOT

CONFIG_PATH = ROOT / "model_repository" / MODEL_NAME / "config.pbtxt"
BACKEND = Path(environment.__file__).parent / "backends" / "onnxruntime" / "model.py"


class FakeTensor:
    def __init__(self, name: str, array: NDArray[np.generic]) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[np.generic]:
        return self._array


def fake_utils() -> ModuleType:
    """The part of Triton's module that the backend uses; requests are dicts, responses keep their arguments."""
    utils: Any = ModuleType("triton_python_backend_utils")
    utils.TritonModelException = type("TritonModelException", (Exception,), {})
    utils.TritonError = str
    utils.Tensor = FakeTensor
    utils.InferenceResponse = lambda output_tensors=(), error=None: SimpleNamespace(tensors=output_tensors, error=error)
    utils.get_input_tensor_by_name = lambda request, name: FakeTensor(name, request[name])
    utils.Logger = SimpleNamespace(log_warn=lambda message: None)
    return utils  # type: ignore[no-any-return]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_utils())
    spec = importlib.util.spec_from_file_location("embedded_backend", BACKEND)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "end_with_parent", lambda parent: None)  # it would end the tests' own process
    return module


def committed_config() -> dict[str, Any]:
    """config.pbtxt as Triton hands it to a Python backend."""
    return json_format.MessageToDict(read_config(CONFIG_PATH), preserving_proto_field_name=True)


def started_model(backend: Any, tmp_path: Path, config: dict[str, Any] | None = None, kind: str = "CPU") -> Any:
    write_tiny_encoder(tmp_path / "1" / "model.onnx", seed=1)
    model = backend.TritonPythonModel()
    arguments = {"model_repository": str(tmp_path), "model_version": "1", "model_instance_kind": kind}
    model.initialize({**arguments, "model_config": json.dumps(config or committed_config())})
    return model


def lengths_of_runs(model: Any, lengths: list[int]) -> list[tuple[int, ...]]:
    """The shapes (rows, columns) of the runs in which a model answers histories of these lengths."""
    shapes, session, longest = [], model.session, max(lengths)

    def run(names: list[str], inputs: dict[str, NDArray[np.generic]]) -> Any:
        shapes.append(inputs["item_index"].shape)
        return session.run(names, inputs)

    model.session = SimpleNamespace(run=run)
    padding = np.arange(longest) < longest - np.array(lengths)[:, None]
    inputs = random_inputs(len(lengths), longest)
    masked = {name: np.where(padding, 0, array).astype(array.dtype) for name, array in inputs.items()}
    [response] = model.execute([masked])
    assert response.error is None
    assert len(response.tensors[0].as_numpy()) == len(lengths)
    return shapes


def test_a_micro_batch_runs_in_small_pieces_without_their_padding(backend: Any, tmp_path: Path) -> None:
    model = started_model(backend, tmp_path)
    assert lengths_of_runs(model, [3] * 8 + [5] * 8 + [20] * 4) == [(8, 3), (8, 5), (4, 20)]


def test_few_histories_and_large_batches_run_in_larger_pieces(backend: Any, tmp_path: Path) -> None:
    model = started_model(backend, tmp_path)
    assert lengths_of_runs(model, [3] * 4 + [20] * 4) == [(8, 20)]
    assert lengths_of_runs(model, [3] * 32 + [20] * 8) == [(32, 3), (8, 20)]


def test_the_committed_config_matches_the_requests_of_the_client() -> None:
    config = read_config(CONFIG_PATH)
    declared = {tensor.name: model_config_pb2.DataType.Name(tensor.data_type) for tensor in config.input}
    assert declared == {name: f"TYPE_{data_type}" for name, data_type in DATA_TYPES.items()}
    assert [tensor.name for tensor in config.output] == [OUTPUT]
    assert all(list(tensor.dims) == [-1] for tensor in (*config.input, *config.output))
    assert (config.name, config.backend, config.max_batch_size) == (MODEL_NAME, "onnxruntime", 256)
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.HasField("default_queue_policy")
    assert not config.response_cache.enable


def test_an_unreadable_config_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text('name: "user_encoder" max_batchsize: 3')
    with pytest.raises(SetupError, match=r"config\.pbtxt cannot be read: .*max_batchsize"):
        read_config(tmp_path / "config.pbtxt")


def test_a_load_request_names_exactly_the_given_versions() -> None:
    request = build_load_request(read_config(CONFIG_PATH), [3, 7])
    sent = json_format.Parse(request.parameters["config"].string_param, model_config_pb2.ModelConfig())
    assert list(sent.version_policy.specific.versions) == [3, 7]
    assert sent.max_batch_size == 256


def test_a_request_holds_the_raw_bytes_of_each_input_in_order() -> None:
    inputs = random_inputs(2, 3)
    request = build_request(5, {**inputs, "value": inputs["value"].astype(np.float64)})
    assert (request.model_name, request.model_version) == (MODEL_NAME, "5")
    assert [tensor.name for tensor in request.inputs] == list(DATA_TYPES)
    assert all(list(tensor.shape) == [2, 3] for tensor in request.inputs)
    assert list(request.raw_input_contents) == [inputs[name].tobytes() for name in DATA_TYPES]


def response(shape: list[int], content: bytes, name: str = OUTPUT) -> service_pb2.ModelInferResponse:
    answer = service_pb2.ModelInferResponse(raw_output_contents=[content])
    answer.outputs.add(name=name, datatype="FP32", shape=shape)
    return answer


def test_a_complete_response_is_read() -> None:
    embeddings = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(read_embeddings(response([2, 3], embeddings.tobytes()), 2), embeddings)


@pytest.mark.parametrize(
    "answer",
    [
        service_pb2.ModelInferResponse(),
        response([2, 3], b""),
        response([2, 0], b""),
        response([2, 3], bytes(20)),
        response([3, 2], bytes(24)),
        response([6], bytes(24)),
        response([2, 3], bytes(24), name="other"),
        response([2, 3], np.full(6, np.nan, np.float32).tobytes()),
    ],
)
def test_an_empty_or_wrong_response_is_refused(answer: service_pb2.ModelInferResponse) -> None:
    with pytest.raises(EncoderUnavailable):
        read_embeddings(answer, 2)


def test_the_backend_applies_known_options(backend: Any) -> None:
    parameters = {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "false",
        "session.use_device_allocator_for_initializers": "1",
    }
    texts = {key: {"string_value": text} for key, text in parameters.items()}
    options = backend.session_options({"parameters": texts, "optimization": {"graph": {"level": -1}}})
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == backend.ort.ExecutionMode.ORT_PARALLEL
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
    assert options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.graph_optimization_level == backend.ort.GraphOptimizationLevel.ORT_ENABLE_BASIC


@pytest.mark.parametrize(
    "config",
    [
        {"parameters": {"gpu_mem_limit": {"string_value": "1"}}},
        {"parameters": {"intra_op_threads": {"string_value": "1"}}},
        {"parameters": {"intra_op_thread_count": {"string_value": "-1"}}},
        {"parameters": {"enable_mem_arena": {"string_value": "yes"}}},
        {"optimization": {"graph": {"level": 5}}},
        {"optimization": {"execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}}},
    ],
)
def test_the_backend_refuses_options_that_it_cannot_apply(backend: Any, config: dict[str, Any]) -> None:
    with pytest.raises(backend.pb_utils.TritonModelException):
        backend.session_options(config)


def test_backend_refuses_a_model_that_does_not_fit_the_config(backend: Any, tmp_path: Path) -> None:
    config = committed_config()
    config["input"].pop()
    with pytest.raises(backend.pb_utils.TritonModelException, match="gap_index"):
        started_model(backend, tmp_path, config)


def test_backend_answers_each_request_of_a_mixed_batch(backend: Any, tmp_path: Path) -> None:
    model = started_model(backend, tmp_path, kind="GPU")
    requests = [random_inputs(1 + seed % 3, 2 + seed % 2, seed) for seed in range(8)]
    requests[3]["item_index"][0, 0] = 10**6
    del requests[5]["value"]
    answers = model.execute(requests)
    assert [position for position, answer in enumerate(answers) if answer.error] == [3, 5]
    for inputs, answer in zip(requests, answers, strict=True):
        if not answer.error:
            expected = model.session.run(None, inputs)[0]
            np.testing.assert_allclose(answer.tensors[0].as_numpy(), expected, rtol=0, atol=1e-6)


def test_a_missing_environment_is_an_error_that_names_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ".triton"
    with pytest.raises(SetupError, match=r"\.triton is missing: run `segrec-triton install`$"):
        check_environment(path)
    monkeypatch.setattr(sys, "argv", ["segrec-triton", "run", "--repository", str(tmp_path), "--path", str(path)])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 1
    assert capsys.readouterr().err.strip().endswith(".triton is missing: run `segrec-triton install`")


def test_an_environment_with_other_pins_is_refused_as_out_of_date(tmp_path: Path) -> None:
    (tmp_path / "segrec-stamp.json").write_text('{"packages": "old", "backends": "old"}')
    with pytest.raises(SetupError, match="out of date: run `segrec-triton install`"):
        check_environment(tmp_path)


def test_a_failed_install_shows_the_reason_and_leaves_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_find_uv", lambda: "/bin/false")
    with pytest.raises(SetupError, match="failed with exit code 1"):
        install_environment(tmp_path / ".triton")
    with pytest.raises(SetupError, match="is missing"):
        check_environment(tmp_path / ".triton")


def test_a_second_install_runs_nothing_and_a_changed_backend_is_copied(
    triton_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*command: str) -> None:
        raise AssertionError(f"ran {command}")

    path = tmp_path / ".triton"
    path.mkdir()
    for part in ("lib", "bin"):
        (path / part).symlink_to(triton_environment / part)
    (path / "segrec-stamp.json").write_text((triton_environment / "segrec-stamp.json").read_text())
    monkeypatch.setattr(environment, "_run", refuse)
    assert install_environment(path) == check_environment(path)
    assert not (path / "backends").exists()

    own = tmp_path / "own"
    shutil.copytree(BACKEND.parents[1], own)
    (own / "onnxruntime" / "model.py").write_text("changed = True\n")
    monkeypatch.setattr(environment, "_OWN_BACKENDS", own)
    left_over = path / "backends" / "python" / "of-an-earlier-version"
    left_over.parent.mkdir(parents=True)
    left_over.touch()
    install_environment(path)
    assert (path / "backends" / "onnxruntime" / "model.py").read_text() == "changed = True\n"
    assert (path / "backends" / "python" / "triton_python_backend_stub").stat().st_mode & 0o111
    assert not left_over.exists()


def test_every_package_is_pinned() -> None:
    lines = (Path(environment.__file__).parent / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines if line and not line.startswith("#"))


def test_the_log_tail_leaves_out_tables_and_lines_before_the_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    start = log.stat().st_size
    log.write_text("before\n+---+\n| a |\n\nfailed to bind\n")
    assert log_tail(log, start) == "failed to bind"


def test_the_help_lists_the_commands() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert "install" in result.output
    assert "run" in result.output
