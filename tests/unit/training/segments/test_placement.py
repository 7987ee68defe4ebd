"""Users of a log are read by a release as the server reads their histories."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from server.core.features import features_of
from server.core.history import Event, history_of
from server.core.release import Confidence, Release
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from server.core.segments import Nearest, nearest, segment_part
from tests.support.releases import START_MS, tiny_release
from training.config import Config
from training.errors import LogError
from training.model.onnx_inference import embed
from training.segments.placement import assignment_table, histories_of, place_users, read_events

COLUMNS = ("item_id", "action", "value", "timestamp")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("placing")
    tiny_release(repository, 1, max_length=8)
    return repository


@pytest.fixture(scope="module")
def release(repository: Path) -> Release:
    return read_release(repository / MODEL_NAME / "1")


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    """60 users of 1 to 30 events; one item in five and one action in ten are unknown, and so are all of user 7's."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(60), rng.integers(1, 31, 60))
    item = np.where(user == 7, 999, rng.integers(1, 63, len(user)))
    return pl.DataFrame(
        {
            "user_id": [f"u{number:02}" for number in user],
            "item_id": [f"item-{number:03d}" for number in item],
            "action": rng.choice(["view", "cart", "purchase", "wish"], len(user), p=[0.5, 0.2, 0.2, 0.1]),
            "value": np.where(rng.random(len(user)) < 0.2, np.nan, rng.lognormal(size=len(user))),
            "timestamp": START_MS + 10**8 * rng.integers(0, 10, len(user)),  # several events at once
        },
    ).sort("user_id", "timestamp", maintain_order=True)


def test_features_are_those_of_the_server(events: pl.DataFrame, release: Release) -> None:
    users = events.partition_by("user_id", maintain_order=True)
    rows = [user.select(COLUMNS).rows() for user in users]
    histories = [history_of(Event(*row) for row in events_of_user) for events_of_user in rows]
    expected = features_of(histories, release.item_index, release.action_index, release.preprocessing)
    found = histories_of(events.lazy(), release)
    assert found.users.to_list() == [user["user_id"][0] for user in users]
    np.testing.assert_array_equal(found.features.offsets, expected.offsets)
    for name in ("item_index", "action_index", "value", "gap_index"):
        np.testing.assert_array_equal(getattr(found.features, name), getattr(expected, name))
    known = events["item_id"].is_in(release.item_ids) & events["action"].is_in(["view", "cart", "purchase"])
    assert (found.event_count, found.unknown_events) == (len(events), int((~known).sum()))


def test_users_of_whom_nothing_is_known_have_no_place(events: pl.DataFrame, release: Release, repository: Path) -> None:
    histories = histories_of(events.lazy(), release)
    placed = place_users(histories, release, repository)
    assert "u07" not in placed.users
    assert (histories.features.lengths[placed.rows] == placed.event_counts).all()
    assert placed.event_counts.min() >= 1
    assert placed.event_counts.max() == 8
    model = repository / MODEL_NAME / "1" / "model.onnx"
    embeddings = embed(model, histories.features, 8)[placed.rows]
    expected = nearest(segment_part(embeddings, release.manifest.embedding_dim), release.centroids)
    np.testing.assert_array_equal(placed.nearest.first, expected.first)
    np.testing.assert_allclose(np.linalg.norm(placed.points, axis=1), 1)


def test_nobody_has_a_place_in_a_log_without_known_items(
    events: pl.DataFrame, release: Release, repository: Path
) -> None:
    strange = events.with_columns(pl.lit("other").alias("item_id"))
    placed = place_users(histories_of(strange.lazy(), release), release, repository)
    assert len(placed.users) == len(placed.nearest.first) == len(placed.points) == 0


def test_a_log_is_cleaned_but_rare_items_stay(events: pl.DataFrame, release: Release, tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.concat([events, events]).sample(fraction=1, shuffle=True, seed=0).write_parquet(path)
    config = Config.model_validate({"clean": {"min_events_per_item": 50, "min_events_per_user": 3}})
    found = read_events(path, config, release).events
    counts = events.group_by("user_id").len().filter(pl.col("len") >= 3)
    assert found["user_id"].unique().sort().to_list() == counts["user_id"].sort().to_list()
    assert len(found) == counts["len"].sum()


def test_a_log_without_times_does_not_do_for_an_encoder_that_reads_them(
    events: pl.DataFrame, release: Release, tmp_path: Path
) -> None:
    events.drop("timestamp").write_parquet(tmp_path / "log.parquet")
    with pytest.raises(LogError, match="has no times"):
        read_events(tmp_path / "log.parquet", Config(), release)


def test_a_row_says_what_the_server_would() -> None:
    calibration = Confidence(margins=(0.0, 1.0), stays=(0.2, 0.8), min_confidence=0.5, min_history=3)
    found = Nearest(np.array([0, 1]), np.array([0.5, 0.0]), np.array([1, 0]), np.array([0.5, 1.0]))
    table = assignment_table(pl.Series(["a", "b"]), [7, 9], found, np.array([3, 2]), calibration)
    assert table["segment_id"].to_list() == [7, 9]
    assert table["runner_up_segment_id"].to_list() == [9, 7]
    assert table["confident"].to_list() == [False, True]
    assert table["short_history"].to_list() == [False, True]


def test_one_segment_alone_has_no_runner_up() -> None:
    found = Nearest(np.zeros(1, np.intp), np.ones(1), np.zeros(1, np.intp), np.ones(1))
    table = assignment_table(pl.Series(["a"]), [7], found, np.ones(1, np.int64), None)
    assert table.row(0) == ("a", 7, 1.0, None, 0, True, False)
