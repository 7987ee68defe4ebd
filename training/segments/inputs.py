"""What the segment stage works on: the stages before it, and every user's embedding."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from server.core.preprocessing import Preprocessing
from server.core.repository.layout import read_preprocessing
from server.core.segments import segment_part
from training.config import SegmentSettings
from training.data.sequences import EventLog, read_log
from training.kmeans.engines import Engine, choose_engine
from training.model.onnx_inference import embed
from training.profiles.llm_names import require_client
from training.ranking.hybrid import Embed
from training.runs import Progress, Run
from training.segments.clusters import bounded


@dataclass(frozen=True, slots=True)
class SegmentInputs:
    """A run that is prepared and exported, and the repository whose newest release the segment ids continue."""

    run: Run
    repository: Path
    prepared: Path
    exported: Path
    settings: SegmentSettings
    engine: Engine
    preprocessing: Preprocessing

    @classmethod
    def read(cls, run: Run, repository: Path) -> Self:
        """Raises RunError when a stage is missing, ConfigError for an engine or naming client that cannot run here."""
        prepared, exported = run.require("prepare"), run.require("export")
        settings = run.config().segment
        engine = choose_engine(settings.backend)
        require_client(settings.naming)
        return cls(run, repository, prepared, exported, settings, engine, read_preprocessing(exported))

    @property
    def model(self) -> Path:
        """The exported encoder."""
        return self.exported / "model.onnx"


@dataclass(frozen=True, slots=True)
class EmbeddedUsers:
    """The log of U users, the `embeddings` of the users (U, D) and of the V items (V, I), and what embeds histories.

    The first I numbers of a user embedding rank items; `parts` (U, E) are the rest, which segments are made of.
    """

    log: EventLog
    embeddings: NDArray[np.float32]
    item_embeddings: NDArray[np.float32]
    encode: Embed

    @property
    def item_dim(self) -> int:
        """I."""
        return int(self.item_embeddings.shape[1])

    @property
    def parts(self) -> NDArray[np.float32]:
        """What segments are made of, (U, E)."""
        return segment_part(self.embeddings, self.item_dim)


def embed_users(inputs: SegmentInputs, progress: Progress) -> EmbeddedUsers:
    """Embed the whole history of every user. Raises LogError for a log without users."""
    log = read_log(inputs.prepared, inputs.preprocessing)
    bounded(1, len(log.users), inputs.settings.min_segment_size)
    item_embeddings = np.load(inputs.exported / "item_embeddings.npy", allow_pickle=False)
    encode = partial(embed, inputs.model, max_length=inputs.preprocessing.max_length)
    return EmbeddedUsers(log, encode(log.features, progress=progress), item_embeddings, encode)
