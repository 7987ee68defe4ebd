"""LitServe with an encoder's ONNX file: `python litserve_server.py MODEL.onnx PORT`, in the peers' environment."""

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime as ort

TYPES = {"item_index": np.int32, "action_index": np.int32, "value": np.float32, "gap_index": np.int32}


class Encoder(litserve.LitAPI):  # type: ignore[misc]
    """One history a call, as JSON lists by input name; answers its embedding. One thread a run, as Segrec's own."""

    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict[str, Any]) -> Any:
        return {name: np.array([request[name]], kind) for name, kind in TYPES.items()}

    def predict(self, inputs: Any) -> Any:
        return self.session.run(None, inputs)[0][0]

    def encode_response(self, output: Any) -> Any:
        return {"embedding": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Encoder(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False, log_level="error"
    )
