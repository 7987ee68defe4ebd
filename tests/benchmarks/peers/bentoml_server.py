"""BentoML with an encoder's ONNX file: `python bentoml_server.py MODEL.onnx PORT`, in the peers' environment."""

import os
import sys
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime as ort

MODEL = "BENCH_MODEL"
TYPES = {"item_index": np.int32, "action_index": np.int32, "value": np.float32, "gap_index": np.int32}


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Encoder:
    """One history a call, as JSON lists by input name; answers its embedding. One thread a run, as Segrec's own."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ[MODEL], options, providers=["CPUExecutionProvider"])

    @bentoml.api  # type: ignore[untyped-decorator]
    def predict(
        self, item_index: list[int], action_index: list[int], value: list[float], gap_index: list[int]
    ) -> list[float]:
        columns = (item_index, action_index, value, gap_index)
        inputs = {name: np.array([column], TYPES[name]) for name, column in zip(TYPES, columns, strict=True)}
        return list(self.session.run(None, inputs)[0][0].tolist())


if __name__ == "__main__":
    os.environ[MODEL] = sys.argv[1]
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_server:Encoder", "--port", sys.argv[2]]
    os.chdir(Path(__file__).parent)
    os.execv(sys.executable, [*command, "--host", "127.0.0.1"])
