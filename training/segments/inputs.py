"""The inputs of the segment stage: the results of earlier stages, and the embedding of every user."""

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
from training.ranking.hybrid import EmbedHistories
from training.runs import Progress, Run
from training.segments.clusters import require_users


@dataclass(frozen=True, slots=True)
class SegmentInputs:
    """A prepared and exported run, and the repository whose newest release has the previous segment ids."""

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
        """The path of the exported encoder."""
        return self.exported / "model.onnx"


@dataclass(frozen=True, slots=True)
class EmbeddedUsers:
    """The log of U users, their `embeddings` (U, D), the `item_embeddings` (V, I), and `embed` for other histories.

    The first I numbers of a user embedding rank items; K-means clusters the other E numbers, `segment_parts`.
    """

    log: EventLog
    embeddings: NDArray[np.float32]
    item_embeddings: NDArray[np.float32]
    embed: EmbedHistories

    @property
    def item_dim(self) -> int:
        """The dimension I of the item embeddings."""
        return int(self.item_embeddings.shape[1])

    @property
    def segment_parts(self) -> NDArray[np.float32]:
        """The part of each user embedding that K-means clusters, (U, E)."""
        return segment_part(self.embeddings, self.item_dim)


def embed_all_users(inputs: SegmentInputs, progress: Progress) -> EmbeddedUsers:
    """Embed the whole history of every user. Raises LogError for a log without users."""
    log = read_log(inputs.prepared, inputs.preprocessing)
    require_users(len(log.users))
    item_embeddings = np.load(inputs.exported / "item_embeddings.npy", allow_pickle=False)
    embed_histories = partial(embed, inputs.model, max_length=inputs.preprocessing.max_length)
    return EmbeddedUsers(log, embed_histories(log.features, progress=progress), item_embeddings, embed_histories)
