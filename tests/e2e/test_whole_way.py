"""From a log to answers over gRPC: what was computed offline is what the server says."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from segrec import SegrecClient
from segrec.v1.segrec_service_pb2 import SEGMENT_STATE_ASSIGNED
from typer.testing import CliRunner

from tests.support.logs import planted_log, write_planted
from tests.support.server import START_SECONDS, ServerProcess, StartServer
from training.cli import app

CONFIG = """
[train]
embedding_dim = 32
layers = 2
heads = 2
epochs = 2
max_length = 16
[segment]
k = 4
"""


def train(directory: Path, events: Path, *flags: object) -> Path:
    """All stages on a log; returns the run's directory. The release goes where the server of this test looks."""
    (directory / "config.toml").write_text(CONFIG)
    places = ("--runs", directory / "runs", "--repository", directory / "repository", "--run", "one")
    words = ("run", "--events", events, "--config", directory / "config.toml", *places, *flags)
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return directory / "runs" / "one"


@pytest.fixture
def bootstrapped(start_server: StartServer, tmp_path: Path) -> tuple[Path, ServerProcess]:
    """A run on a planted log of 500 users, and a server that serves it with their histories."""
    events, items, _ = write_planted(tmp_path, users=500, items=80, segments=4, events_per_user=24)
    run = train(tmp_path, events, "--items", items)
    server = start_server("--bootstrap-events", str(run / "prepare" / "events.parquet"))
    server.wait_until_said("serving", START_SECONDS)
    return run, server


def test_500_users_have_one_segment_and_distance_offline_alone_and_in_a_stream(
    bootstrapped: tuple[Path, ServerProcess],
) -> None:
    run, server = bootstrapped
    offline = pl.read_parquet(run / "segment" / "assignments.parquet")
    users = offline["user_id"].to_list()
    assert len(users) == 500
    with SegrecClient(server.address, timeout_seconds=20) as client:
        alone = [client.segment(user_id) for user_id in users]
        streamed = [row.result for row in client.stream_segment(users, chunk_size=100)]
    for online in (alone, streamed):
        assert {answer.assignment.state for answer in online} == {SEGMENT_STATE_ASSIGNED}
        assert [answer.assignment.segment_id for answer in online] == offline["segment_id"].to_list()
        distances = [answer.assignment.distance for answer in online]
        np.testing.assert_allclose(distances, offline["distance"].to_numpy(), atol=1e-5)
    assert {answer.info.history_event_count for answer in alone} == {16}


def test_a_chinese_log_without_time_or_items_works_as_it_is(start_server: StartServer, tmp_path: Path) -> None:
    events, _ = planted_log(users=120, items=40, segments=4, events_per_user=15)
    actions = {"view": "浏览", "cart": "搜索", "purchase": "购买"}
    log = events.select(
        pl.col("user_id").alias("用户ID"),
        pl.col("item_id").alias("商品ID"),
        pl.col("action").replace_strict(actions).alias("行为类型"),
        pl.col("value").alias("行为值"),
    )
    log.write_csv(tmp_path / "行为日志.csv")
    run = train(tmp_path, tmp_path / "行为日志.csv")
    server = start_server("--bootstrap-events", str(run / "prepare" / "events.parquet"))
    server.wait_until_said("serving", START_SECONDS)
    user_id = log["用户ID"][0]
    with SegrecClient(server.address, timeout_seconds=20) as client:
        answer = client.recommend(user_id, top_k=5)
        assert answer.assignment.state == SEGMENT_STATE_ASSIGNED
        assert len(answer.items) == 5
        history = client.history(user_id)
    assert history.stored_event_count == 15
    assert {event.action for event in history.events} <= set(actions.values()) | {"view", "search", "purchase"}
