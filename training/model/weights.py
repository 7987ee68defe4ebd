"""The encoder's files in a run: its shape as JSON, its best weights as safetensors, and how to read them."""

from pathlib import Path

from safetensors.torch import load_file

from training.errors import RunError
from training.model.encoder import Encoder, EncoderShape
from training.model.ensemble import FUSION, read_fused
from training.model.quantized import QUANTIZED, QuantizedEncoder

WEIGHTS = "encoder.safetensors"
SHAPE = "encoder.json"


def load_encoder(trained: Path) -> Encoder:
    """The encoder with its best weights, for inference on the CPU; a fused or quantized encoder for a derived run."""
    if (trained / FUSION).is_file():
        return read_fused(trained, load_encoder)
    if (trained / QUANTIZED).is_file():
        return QuantizedEncoder(trained)
    if not (trained / WEIGHTS).is_file():
        raise RunError(f"{trained} has no {WEIGHTS}; run `segrec-train train` first.")
    encoder = Encoder(EncoderShape.read(trained / SHAPE))
    encoder.load_state_dict(load_file(trained / WEIGHTS))
    return encoder.eval()
