"""The model repository's fixed part: Triton's description of the encoder."""

import os
import re
from importlib.resources import files
from pathlib import Path

from server.core.preprocessing import Preprocessing

MODEL_NAME = "user_encoder"
"""The model's name in Triton and its directory in the model repository."""

OUTPUT = "user_embedding"
"""The encoder's output, float32 (B, D). Its inner product with an item embedding is that item's logit."""

CONFIG_NAME = "config.pbtxt"

PREPROCESSING = "preprocessing.json"
"""How a release, and the stages of a run, name the file of their `Preprocessing`."""

RELEASE_NAME = re.compile(r"[1-9][0-9]{0,17}")
"""How a release's directory is named; names such as `2.tmp` and `02` are no releases."""


def ensure_repository(repository: Path) -> Path:
    """Make the model's directory with its `config.pbtxt` where there is none; returns the path of that file."""
    config = repository / MODEL_NAME / CONFIG_NAME
    if not config.exists():
        config.parent.mkdir(parents=True, exist_ok=True)
        temporary = config.with_name(f".{CONFIG_NAME}.{os.getpid()}")
        temporary.write_bytes(files("server.core.repository").joinpath(CONFIG_NAME).read_bytes())
        temporary.replace(config)
    return config


def read_preprocessing(directory: Path) -> Preprocessing:
    """The `Preprocessing` of a release or of a run's stage. Raises OSError and pydantic's ValidationError."""
    return Preprocessing.model_validate_json((directory / PREPROCESSING).read_bytes())
