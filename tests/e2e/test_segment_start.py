"""The segment stage with the other ways to run K-means: from the newest release's centroids, and over Dask."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from server.core.repository.layout import MODEL_NAME
from tests.e2e.test_segment import assignments, exported_run, planted_labels
from training.publish.publish import publish
from training.segments.segment import segment


def test_a_warm_start_begins_where_the_newest_release_ended(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    run = exported_run(tmp_path, start="previous", min_segment_size=1)
    first = segment(run, repository)
    assert "There are no previous segments to start from; k-means++ drew the first centroids." in first.notes
    publish(run, repository)
    second = segment(run, repository)
    assert not [note for note in second.notes if "k-means++" in note]
    assert second.iterations <= 2, "it begins with the centroids of release 1"
    assert second.inertia == pytest.approx(first.inertia, rel=1e-5)
    released = np.load(repository / MODEL_NAME / "1" / "centroids.npy", allow_pickle=False)
    np.testing.assert_allclose(np.load(run.path / "segment" / "centroids.npy"), released, atol=1e-5)


def test_an_encoder_of_another_size_starts_from_the_segments_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    run = exported_run(tmp_path, min_segment_size=1)
    first = segment(run, repository)
    publish(run, repository)
    monkeypatch.setattr("tests.e2e.test_segment.DIM", 8)
    second = segment(exported_run(tmp_path / "other", start="previous", min_segment_size=1), repository)
    assert {profile.segment_id for profile in second.profiles} == {profile.segment_id for profile in first.profiles}


def test_dask_finds_the_planted_segments(tmp_path: Path, dask_client: Any) -> None:
    run = exported_run(tmp_path, backend="dask", restarts=2, min_segment_size=1)
    found = segment(run, tmp_path / "repository")
    assert found.engine == "dask"
    assert adjusted_rand_score(planted_labels(run), assignments(run)["segment_id"]) == 1.0
