"""Names in the model repository, and the configuration of the encoder for Triton."""

import os
import re
from importlib.resources import files
from pathlib import Path

from server.core.preprocessing import Preprocessing

MODEL_NAME = "user_encoder"
"""Name of the model in Triton, and of its directory in the model repository."""

OUTPUT = "user_embedding"
"""The output of the encoder, float32 (B, D); see `server.core.segments` for its parts."""

CONFIG_NAME = "config.pbtxt"

PREPROCESSING = "preprocessing.json"
"""File name of `Preprocessing` in a release and in the stages of a run."""

EVENTS_MARK = "segrec.events"
"""Key in the metadata of the Parquet file of prepared events: its times are clean, int64 milliseconds since 1970."""
WITH_CLOCK, WITHOUT_CLOCK = "clock", "order"
"""Values of `EVENTS_MARK`; in events without a clock, times only give the order."""

RELEASE_NAME = re.compile(r"[1-9][0-9]{0,17}")
"""The name of a release directory. `2.tmp` and `02` are not releases."""


def ensure_repository(repository: Path) -> Path:
    """Create the directory of the model with `config.pbtxt` if it is missing; returns the path of `config.pbtxt`."""
    config = repository / MODEL_NAME / CONFIG_NAME
    return config if config.exists() else write_config(repository)


def write_config(repository: Path) -> Path:
    """Write `config.pbtxt` of this version into the directory of the model; returns its path. Raises OSError."""
    config = repository / MODEL_NAME / CONFIG_NAME
    config.parent.mkdir(parents=True, exist_ok=True)
    temporary = config.with_name(f".{CONFIG_NAME}.{os.getpid()}")
    temporary.write_bytes(files("server.core.repository").joinpath(CONFIG_NAME).read_bytes())
    temporary.replace(config)
    return config


def read_preprocessing(directory: Path) -> Preprocessing:
    """The `Preprocessing` of a release or of a run's stage. Raises OSError and pydantic's ValidationError."""
    return Preprocessing.model_validate_json((directory / PREPROCESSING).read_bytes())
