"""A Triton backend named `onnxruntime`, written in Python, for a Triton that ships without NVIDIA's native one.

It runs the `model.onnx` of a version directory with ONNX Runtime on the CPU, and reads the same `config.pbtxt` as the
native backend. An option of the native backend is either applied or refused when the model loads. An unknown option is
refused too, so that a typing error is noticed.

This file runs inside Triton's Python stub with the packages of the embedded environment, never inside the server.
"""

import json
import os
import signal
import threading
import time

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

MODEL_FILE = "model.onnx"
PARENT_CHECK_SECONDS = 0.5
ALARM_SECONDS = 5
PADDING_PARAMETER = "padding_input"
PIECE_ROWS = 32
"""Rows of one run of a large batch, whose rows are sorted by length over many histories: they differ little."""
SMALL_PIECE_ROWS = 8
"""Rows of one run of a batch of up to `PIECE_ROWS`: the lengths of so few histories differ much."""
GRAPH_LEVELS = {
    "-1": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "0": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "1": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "2": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
SWITCHES = {"0": False, "false": False, "1": True, "true": True}


def _switch(key, text):
    if text.lower() not in SWITCHES:
        raise pb_utils.TritonModelException(f"parameter {key} is {text!r}, expected 0 or 1")
    return SWITCHES[text.lower()]


def _count(key, text):
    if not text.isdecimal():
        raise pb_utils.TritonModelException(f"parameter {key} is {text!r}, expected a count of 0 or more")
    return int(text)


def _apply_parameter(options, key, text):
    """Apply one `parameters` entry of config.pbtxt. Raises for an unknown key or value."""
    if key == "intra_op_thread_count":
        options.intra_op_num_threads = _count(key, text)
    elif key == "inter_op_thread_count":
        options.inter_op_num_threads = _count(key, text)
    elif key == "execution_mode":
        parallel = _switch(key, text)
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if parallel else ort.ExecutionMode.ORT_SEQUENTIAL
    elif key == "enable_mem_arena":
        options.enable_cpu_mem_arena = _switch(key, text)
    elif key == "enable_mem_pattern":
        options.enable_mem_pattern = _switch(key, text)
    elif key == "session.use_device_allocator_for_initializers":
        options.add_session_config_entry(key, "1" if _switch(key, text) else "0")
    elif key != PADDING_PARAMETER:  # this parameter describes the inputs, not the session
        raise pb_utils.TritonModelException(f"parameter {key} is not supported by the embedded ONNX Runtime backend")


def session_options(config):
    """ONNX Runtime session options of a model configuration (a dict, Triton's JSON form)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    for key, value in config.get("parameters", {}).items():
        _apply_parameter(options, key, value["string_value"])
    optimization = config.get("optimization", {})
    if optimization.get("execution_accelerators"):
        raise pb_utils.TritonModelException("execution_accelerators need NVIDIA's Triton: this one runs on the CPU")
    level = str(optimization.get("graph", {}).get("level", 0))
    if level not in GRAPH_LEVELS:
        raise pb_utils.TritonModelException(f"optimization graph level is {level}, expected one of -1, 0, 1, 2")
    options.graph_optimization_level = GRAPH_LEVELS[level]
    return options


def _check_tensors(kind, declared, nodes):
    """Raise unless config.pbtxt and the ONNX file name the same tensors."""
    configured, in_model = sorted(tensor["name"] for tensor in declared), sorted(node.name for node in nodes)
    if configured != in_model:
        raise pb_utils.TritonModelException(f"{kind}s are {configured} in config.pbtxt and {in_model} in {MODEL_FILE}")


def end_with_parent(parent):
    """End this process soon after its parent, Triton. A stub does not always end when Triton is killed.

    Such a stub may wait for ever with Python's lock held, so that no Python thread runs. This thread therefore renews
    an alarm of the kernel; when the thread stops, the alarm ends the process.
    """
    while os.getppid() == parent:
        signal.alarm(ALARM_SECONDS)
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


class TritonPythonModel:
    """One instance of one version: one ONNX Runtime session in a process of its own."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Return the configuration unchanged: config.pbtxt is complete."""
        return auto_complete_model_config

    def initialize(self, args):
        """Load the version's ONNX file. Raises when it is missing, damaged, or does not fit config.pbtxt."""
        parent = os.getppid()
        config = json.loads(args["model_config"])
        path = os.path.join(args["model_repository"], args["model_version"], MODEL_FILE)
        if not os.path.isfile(path):
            raise pb_utils.TritonModelException(f"{path} is missing")
        self.session = ort.InferenceSession(path, session_options(config), providers=["CPUExecutionProvider"])
        self.input_names = [tensor["name"] for tensor in config["input"]]
        self.output_names = [tensor["name"] for tensor in config["output"]]
        padding = config.get("parameters", {}).get(PADDING_PARAMETER, {}).get("string_value")
        if padding is not None and padding not in self.input_names:
            raise pb_utils.TritonModelException(f"parameter {PADDING_PARAMETER} is {padding!r}, which is no input")
        self.padding_index = None if padding is None else self.input_names.index(padding)
        _check_tensors("input", config["input"], self.session.get_inputs())
        _check_tensors("output", config["output"], self.session.get_outputs())
        if args["model_instance_kind"] == "GPU":
            pb_utils.Logger.log_warn("The embedded Triton runs ONNX Runtime on the CPU: the GPU is not used.")
        # Only now, because loading may hold Python's lock for longer than the alarm waits.
        threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()

    def execute(self, requests):
        """Answer all requests, one run per input shape; a request that fails gets its own error."""
        responses = [None] * len(requests)
        groups = {}
        for position, request in enumerate(requests):
            try:
                inputs = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.input_names]
            except Exception as error:
                responses[position] = self._failure(error)
                continue
            shape = tuple(array.shape[1:] for array in inputs)
            groups.setdefault(shape, []).append((position, inputs))
        for group in groups.values():
            self._answer_group(group, responses)
        return responses

    def _answer_group(self, group, responses):
        """Run a group as one batch; if that fails, run its requests one by one to find the faulty request."""
        try:
            answers = self._run_batch([inputs for _, inputs in group])
        except Exception as error:
            if len(group) == 1:
                responses[group[0][0]] = self._failure(error)
            else:
                for member in group:
                    self._answer_group([member], responses)
            return
        for (position, _), answer in zip(group, answers, strict=True):
            tensors = [pb_utils.Tensor(name, array) for name, array in zip(self.output_names, answer, strict=True)]
            responses[position] = pb_utils.InferenceResponse(output_tensors=tensors)

    def _run_batch(self, batch):
        """Outputs of each request, in order, from one ONNX Runtime call."""
        if len(batch) == 1:
            return [self._run(batch[0])]
        outputs = self._run([np.concatenate(arrays) for arrays in zip(*batch, strict=True)])
        ends = np.cumsum([inputs[0].shape[0] for inputs in batch])[:-1]
        return list(zip(*(np.split(array, ends) for array in outputs), strict=True))

    def _run(self, arrays):
        """Outputs of one batch, run in pieces, each without the columns that hold only padding."""
        rows = len(arrays[0])
        if self.padding_index is None or rows <= SMALL_PIECE_ROWS:
            return self.session.run(self.output_names, dict(zip(self.input_names, arrays, strict=True)))
        size = SMALL_PIECE_ROWS if rows <= PIECE_ROWS else PIECE_ROWS
        pieces = []
        for start in range(0, rows, size):
            piece = [array[start : start + size] for array in arrays]
            used = (piece[self.padding_index] != 0).any(axis=0)
            first = int(used.argmax()) if used.any() else len(used) - 1
            trimmed = [np.ascontiguousarray(array[:, first:]) for array in piece]
            pieces.append(self.session.run(self.output_names, dict(zip(self.input_names, trimmed, strict=True))))
        return [np.concatenate(outputs) for outputs in zip(*pieces, strict=True)]

    @staticmethod
    def _failure(error):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))
