"""The segment stage on planted logs, with an encoder that is known to tell the planted groups apart."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import adjusted_rand_score

from server.core.features import features_of
from server.core.history import Event, history_of
from server.core.release import Release
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from server.core.segments import nearest, next_item_part, normalised
from tests.support.logs import fashionable, write_planted
from tests.support.releases import write_mean_encoder
from training.config import Config
from training.data.prepare import prepare
from training.errors import ConfigError, LogError, RunError
from training.kmeans.engines import cuml_problem
from training.model.onnx_inference import embed
from training.publish.publish import publish
from training.runs import Run
from training.segments import files, search_lists
from training.segments.clusters import limit_k, require_users
from training.segments.segment import segment

USERS, ITEMS, GROUPS, DIM = 120, 40, 4, 16


def exported_run(
    directory: Path,
    name: str = "run",
    encoder_seed: int = 0,
    users: int = USERS,
    change: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
    **settings: object,
) -> Run:
    """A run of a planted log, changed first, up to `export`; `encoder_seed` is that of its item vectors."""
    directory.mkdir(exist_ok=True)
    events, items, labels = write_planted(directory, users=users, items=ITEMS, segments=GROUPS)
    if change:
        change(pl.read_csv(events)).write_csv(events)
    run = Run.create(directory / "runs", run_id=name)
    config = Config.model_validate({"segment": {"k": GROUPS, "min_segment_size": 10} | settings})
    prepare(run, events, items, labels, config)
    for stage in ("train", "evaluate"):
        with run.stage(stage):
            pass
    with run.stage("export") as export:
        shutil.copyfile(run.path / "prepare" / "preprocessing.json", export.directory / "preprocessing.json")
        rng = np.random.default_rng(encoder_seed)
        item_ids = pl.read_parquet(run.path / "prepare" / "items.parquet")["item_id"]
        group = np.array([int(item_id[1:]) % GROUPS for item_id in item_ids])
        vectors = (3 * np.eye(DIM)[group] + rng.normal(scale=0.1, size=(len(group), DIM))).astype(np.float32)
        write_mean_encoder(export.directory / "model.onnx", vectors, rng)
        np.save(export.directory / "item_embeddings.npy", vectors)
    return run


def assignments(run: Run) -> pl.DataFrame:
    return pl.read_parquet(run.path / "segment" / "assignments.parquet")


def planted_labels(run: Run) -> list[int]:
    return [int(user_id[1:]) % GROUPS for user_id in assignments(run)["user_id"]]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def test_planted_segments_are_found_and_named(tmp_path: Path, repository: Path) -> None:
    run = exported_run(tmp_path)
    found = segment(run, repository)
    assert adjusted_rand_score(planted_labels(run), assignments(run)["segment_id"]) == 1.0
    assert sorted(profile.segment_id for profile in found.profiles) == [1, 2, 3, 4]
    assert {profile.label.split(" · ")[0] for profile in found.profiles} == {f"group {g}" for g in range(GROUPS)}
    assert sum(profile.user_count for profile in found.profiles) == USERS
    assert all(profile.silhouette > 0.5 for profile in found.profiles)
    [mixing] = found.notes  # four clear groups need no help of their segments
    assert "the hybrid is the personal ranking" in mixing
    ndcg = {figure.method: figure.value for figure in found.figures if figure.metric == "ndcg"}
    assert ndcg["segment"] > ndcg["popular"]


def test_the_release_places_every_user_as_the_run_did(tmp_path: Path, repository: Path) -> None:
    """Through the server's own features, nearest centroid and release: same segments, distances within 1e-5."""
    run = exported_run(tmp_path)
    segment(run, repository)
    release = read_release(repository / MODEL_NAME / str(publish(run, repository)))
    expected = assignments(run)
    found, distances = placed_online(release, run, repository, expected["user_id"].to_list())
    assert found == expected["segment_id"].to_list()
    np.testing.assert_allclose(distances, expected["distance"].to_numpy(), atol=1e-5)


def placed_online(
    release: Release, run: Run, repository: Path, user_ids: list[str]
) -> tuple[list[int], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    events = pl.read_parquet(run.path / "prepare" / "events.parquet")
    columns = ("item_id", "action", "value", "timestamp")
    histories = [
        history_of(Event(*event) for event in events.filter(pl.col("user_id") == user_id).select(columns).iter_rows())
        for user_id in user_ids
    ]
    features = features_of(histories, release.item_index, release.action_index, release.preprocessing)
    model = repository / MODEL_NAME / str(release.number) / "model.onnx"
    placed = nearest(embed(model, features, release.preprocessing.max_length), release.centroids)
    return [release.segments[cluster].segment_id for cluster in placed.first], placed.first_distance


def test_a_refit_keeps_the_ids_of_the_same_users(tmp_path: Path, repository: Path) -> None:
    """Another encoder, whose space has nothing to do with the first one's, and another seed of K-means."""
    first = exported_run(tmp_path, "first")
    segment(first, repository)
    publish(first, repository)
    second = exported_run(tmp_path, "second", encoder_seed=9, seed=5)
    found = segment(second, repository)
    assert found.parent_release == 1
    assert found.born == found.retired == ()
    both = assignments(first).join(assignments(second), on="user_id")
    assert np.mean((both["segment_id"] == both["segment_id_right"]).to_numpy()) >= 0.95
    assert publish(second, repository) == 2
    history = read_release(repository / MODEL_NAME / "2").segments[0].history
    assert [record.release for record in history] == [2, 1]


def test_a_new_segment_gets_a_new_id_and_a_lost_one_retires(tmp_path: Path, repository: Path) -> None:
    run = exported_run(tmp_path)
    segment(run, repository, 3)
    publish(run, repository)
    more = segment(run, repository, 4)
    assert more.born == (4,)
    publish(run, repository)
    fewer = segment(run, repository, 3)
    assert len(fewer.retired) == 1
    publish(run, repository)
    again = segment(run, repository, 4)
    assert again.born == (5,)


def test_users_of_other_items_get_fresh_ids(tmp_path: Path, repository: Path) -> None:
    """The newest release knows none of this log's items, so that nothing can be matched."""
    run = exported_run(tmp_path)
    segment(run, repository)
    publish(run, repository)
    directory = tmp_path / "other"
    directory.mkdir()
    other = exported_run(directory)
    for name in ("events", "items"):
        path = other.path / "prepare" / f"{name}.parquet"
        frame = pl.read_parquet(path).with_columns(pl.col("item_id").str.replace("i", "other-"))
        frame.write_parquet(path)
    found = segment(other, repository)
    assert sorted(found.born) == [5, 6, 7, 8]
    assert found.retired == (1, 2, 3, 4)


def test_a_damaged_newest_release_is_passed_over(tmp_path: Path, repository: Path) -> None:
    run = exported_run(tmp_path)
    segment(run, repository)
    publish(run, repository)
    publish(run, repository)
    (repository / MODEL_NAME / "2" / "centroids.npy").unlink()
    assert segment(run, repository).parent_release == 1


@pytest.mark.parametrize("trend", [False, True])
def test_a_large_catalogue_is_searched_by_lists(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, trend: bool
) -> None:
    monkeypatch.setattr(files, "APPROXIMATE_FROM", ITEMS)
    monkeypatch.setattr(search_lists, "MOST_VISITED", 1)  # the test's catalogue is small
    run = exported_run(tmp_path, change=fashionable if trend else None)
    segment(run, repository)
    release = read_release(repository / MODEL_NAME / str(publish(run, repository)))
    assert release.search_lists is not None
    assert run.figures("segment")["search_recall"] == release.search_lists.recall >= search_lists.LEAST_RECALL
    assert (release.trend is not None) is trend
    users = next_item_part(np.load(run.path / "segment" / "user_embeddings.npy"), release.manifest.embedding_dim)
    scores = release.personal_scores(users, np.arange(ITEMS))
    best = np.argsort(-scores, axis=1)[:, :10]
    found = release.search(users, 10)
    assert np.mean([np.isin(right, given).mean() for right, given in zip(best, found, strict=True)]) > 0.95


def test_files_fit_together(tmp_path: Path, repository: Path) -> None:
    run = exported_run(tmp_path)
    segment(run, repository)
    directory = run.path / "segment"
    embeddings = np.load(directory / "user_embeddings.npy")
    assert embeddings.shape == (USERS, DIM)
    centroids = np.load(directory / "centroids.npy")
    distances = np.linalg.norm(normalised(embeddings)[:, None] - centroids, axis=2).min(1)
    np.testing.assert_allclose(assignments(run)["distance"].to_numpy(), distances, atol=1e-5)
    golden = json.loads((directory / "golden.json").read_text())
    assert [sum(index > 0 for index in row) for row in golden["item_index"]] == [1, 10, 32]
    items = pl.read_parquet(directory / "items.parquet")
    assert items.columns == ["item_id", "title", "category", "event_count", "popularity", "group", "item_hash"]
    assert items["popularity"].exp().sum() == pytest.approx(1, abs=1e-4)
    assert run.figures("segment")["k"] == GROUPS


def of_many_items(events: pl.DataFrame) -> pl.DataFrame:
    """The events on ten times as many items of the same groups, so that two users hardly ever share three in a row."""
    number = pl.col("item_id").str.slice(1).cast(pl.Int64) + ITEMS * (pl.int_range(pl.len()) % 10)
    return events.with_columns(pl.format("i{}", number.cast(pl.String).str.zfill(5)).alias("item_id"))


def test_a_release_holds_no_history_and_no_id_of_a_user(tmp_path: Path, repository: Path) -> None:
    run = exported_run(tmp_path, change=of_many_items)
    segment(run, repository)
    directory = repository / MODEL_NAME / str(publish(run, repository))
    release = read_release(directory)
    events = pl.read_parquet(run.path / "prepare" / "events.parquet").sort("user_id", "timestamp", maintain_order=True)
    lived = {
        tuple(release.vocabulary[item_id] for item_id in items[place : place + 3])
        for items in events.group_by("user_id").agg("item_id")["item_id"].to_list()
        for place in range(len(items) - 2)
    }
    assert len(lived) > 1000
    golden = [[index for index in row if index] for row in release.manifest.golden.item_index]
    drawn = {tuple(row[place : place + 3]) for row in golden for place in range(len(row) - 2)}
    assert len(drawn) > 20
    assert not drawn & lived
    user_ids = [user_id.encode() for user_id in events["user_id"].unique()]
    for path in directory.iterdir():
        if path.suffix == ".parquet":
            assert not {"user_id", "row"} & set(pl.read_parquet_schema(path))
        content = path.read_bytes()
        assert not any(user_id in content for user_id in user_ids), path.name


def test_items_in_demand_count_for_more_where_that_is_so(tmp_path: Path, repository: Path) -> None:
    run = exported_run(tmp_path, change=fashionable)
    found = segment(run, repository)
    assert any(
        note.startswith("Items that are in demand now rank higher: trend with half-life") for note in found.notes
    )
    assert run.figures("segment")["trend_weight"] > 0
    release = read_release(repository / MODEL_NAME / str(publish(run, repository)))
    events = pl.read_parquet(run.path / "prepare" / "events.parquet")
    newest = events.filter(pl.col("timestamp") > events["timestamp"].sort()[-100])["item_id"]
    [(item_id, _)] = newest.value_counts(sort=True).head(1).iter_rows()
    assert release.trend is not None
    assert release.trend[release.vocabulary[item_id] - 1] > 0.25 > release.trend.mean()


@pytest.mark.parametrize(("k", "users", "segments"), [(8, 1000, 8), (8, 35, 3), (8, 3, 1)])
def test_few_users_get_few_segments(k: int, users: int, segments: int) -> None:
    found, notes = limit_k(k, users, 10)
    assert found == segments
    assert bool(notes) == (segments < k)


def test_a_log_without_users_is_refused() -> None:
    with pytest.raises(LogError, match="no users to segment"):
        require_users(0)


def test_a_tiny_log_gets_a_release_with_a_note(tmp_path: Path, repository: Path) -> None:
    run = exported_run(tmp_path, users=12)
    found = segment(run, repository)
    assert len(found.profiles) == 1
    assert "1 segment instead of 4" in found.notes[0]
    assert publish(run, repository) == 1


def test_an_engine_that_cannot_run_is_an_error(tmp_path: Path, repository: Path) -> None:
    if not cuml_problem():
        pytest.skip("cuML can run here")
    run = exported_run(tmp_path, backend="cuml")
    with pytest.raises(ConfigError, match="cuml"):
        segment(run, repository)


def test_a_missing_export_is_named(tmp_path: Path, repository: Path) -> None:
    events, items, _ = write_planted(tmp_path)
    run = Run.create(tmp_path / "runs", run_id="run")
    prepare(run, events, items, None, Config())
    with pytest.raises(RunError, match="segrec-train export"):
        segment(run, repository)
