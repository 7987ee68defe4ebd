"""From a log to answers over gRPC: what was computed offline is what the server says."""

import os
import signal
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
from segrec import SegrecClient
from segrec.v1.segrec_service_pb2 import SEGMENT_STATE_ASSIGNED, SEGMENT_STATE_NO_CONFIDENT_SEGMENT
from typer.testing import CliRunner

from tests.support.logs import planted_log, write_planted
from tests.support.server import START_SECONDS, ServerProcess, StartServer
from tests.support.waiting import wait_until
from training.cli.main import app

ROOT = Path(__file__).parents[2]

CONFIG = """
[train]
embedding_dim = 32
layers = 2
heads = 2
epochs = 2
max_length = 16
[segment]
k = 4
min_segment_size = 10
"""


def train(directory: Path, events: Path, *flags: object) -> Path:
    """All stages on a log; returns the run's directory. The release goes where the server of this test looks."""
    (directory / "config.toml").write_text(CONFIG)
    places = ("--runs", directory / "runs", "--repository", directory / "repository", "--run", "one")
    words = (
        "run",
        "--events",
        events,
        "--config",
        directory / "config.toml",
        *places,
        *flags,
        "--force",
        "rules win on so small a log",
    )
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
    states = [SEGMENT_STATE_ASSIGNED if sure else SEGMENT_STATE_NO_CONFIDENT_SEGMENT for sure in offline["confident"]]
    edge = set(np.flatnonzero(np.abs(offline["confidence"].to_numpy() - 0.5) < 1e-4))
    for online in (alone, streamed):
        differing = [answer.assignment.state != state for answer, state in zip(online, states, strict=True)]
        assert set(np.flatnonzero(differing)) <= edge
        confidences = [answer.assignment.confidence for answer in online]
        np.testing.assert_allclose(confidences, offline["confidence"].to_numpy(), atol=1e-4)
        runners_up = [answer.assignment.runner_up_segment_id for answer in online]
        assert runners_up == offline["runner_up_segment_id"].to_list()
        assert [answer.assignment.short_history for answer in online] == offline["short_history"].to_list()
        assert [answer.assignment.segment_id for answer in online] == offline["segment_id"].to_list()
        distances = [answer.assignment.distance for answer in online]
        np.testing.assert_allclose(distances, offline["distance"].to_numpy(), atol=1e-5)
    assert {answer.info.history_event_count for answer in alone} == {24}  # all: 16 by the blocks, the rest by the bag


WAITING = ("61", "247")  # wait4 and waitid, by their numbers on x86-64


def test_the_demo_shows_its_answers_and_ctrl_c_stops_all_of_it(tmp_path: Path, triton_environment: Path) -> None:
    """The second half of `make run`, on a small log; interrupted while it waits, as a person would."""
    events, items, _ = write_planted(tmp_path, users=60)
    run = train(tmp_path, events, "--items", items)
    settings = {
        **{f"SEGREC_{name}": "127.0.0.1:0" for name in ("ADDRESS", "MODEL_ADDRESS", "METRICS_ADDRESS")},
        "SEGREC_REPOSITORY": str(tmp_path / "repository"),
        "SEGREC_STORE": f"lmdb:{tmp_path / 'history'}",
        "SEGREC_TRITON_ENVIRONMENT": str(triton_environment),
    }
    command = [sys.executable, str(ROOT / "deploy" / "demo.py"), "--run", str(run)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env={**os.environ, **settings}
    ) as demo:
        assert demo.stdout is not None
        output = list(takewhile(lambda line: "Ctrl-C stops" not in line, demo.stdout))
        wait_until(lambda: Path(f"/proc/{demo.pid}/syscall").read_text().split()[0] in WAITING)
        family = psutil.Process(demo.pid).children(recursive=True)
        names = {process.name() for process in family}
        demo.send_signal(signal.SIGINT)
        try:
            rest, _ = demo.communicate(timeout=60)
        finally:
            demo.terminate()
        assert demo.returncode == 130
    assert "Stopping" in rest
    assert sum("User u0" in line for line in output) == 4  # one of each segment
    assert any("personal" in line for line in output)
    assert "tritonserver" in names
    wait_until(lambda: not [process for process in family if process.is_running() and process.status() != "zombie"])


@pytest.mark.nightly
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
        assert answer.assignment.state in (SEGMENT_STATE_ASSIGNED, SEGMENT_STATE_NO_CONFIDENT_SEGMENT)
        assert answer.assignment.segment_id
        assert len(answer.items) == 5
        history = client.history(user_id)
    assert history.total_size == 15
    assert {event.action for event in history.events} <= set(actions.values()) | {"view", "search", "purchase"}
