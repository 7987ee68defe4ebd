"""The releases of all simulated histories, and what is right: the segment that a release gives to a history."""

import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from server.core.features import batches, features_of
from server.core.history import Event, history_of
from server.core.release import Release
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from server.core.segments import nearest, segment_part
from tests.simulation.parts import embeddings_of
from tests.support.releases import tiny_release

LARGEST_RELEASE = 12


@lru_cache(maxsize=1)
def templates() -> Path:
    """A repository with releases 1 to `LARGEST_RELEASE`, from which worlds copy; made once for each process."""
    root = Path(tempfile.mkdtemp(prefix="segrec-simulation-", dir=memory_directory()))
    for number in range(1, LARGEST_RELEASE + 1):
        tiny_release(root, number)
    return root


def memory_directory() -> str | None:
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() else None


@lru_cache(maxsize=LARGEST_RELEASE)
def good_release(number: int) -> Release:
    return read_release(templates() / MODEL_NAME / str(number))


@lru_cache(maxsize=10_000)
def placed(number: int, events: tuple[Event, ...]) -> tuple[int, float]:
    """Segment id and distance that a release gives to these events, straight from its files."""
    if not events:
        return 0, 0.0
    release = good_release(number)
    features = features_of([history_of(events)], release.item_index, release.action_index, release.preprocessing)
    [(_, inputs)] = batches(features, release.preprocessing.max_length)
    embedding = embeddings_of(templates() / MODEL_NAME / str(number) / "model.onnx", dict(inputs))
    place = nearest(segment_part(embedding, release.item_embeddings.shape[1]), release.centroids)
    return release.segments[int(place.first[0])].segment_id, float(np.float32(place.first_distance[0]))
