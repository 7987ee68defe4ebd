"""A log on which popularity wins: the release stands by, says why, and answers only when a person wants it."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from server.core.repository.audit import read_audit
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_manifest
from server.core.repository.traffic import read_traffic
from training.cli.console import STANDS_BY
from training.cli.main import app
from training.publish.active_gate import active_release
from training.repository import stands_by

USERS, ITEMS, LENGTH, POPULAR = 120, 200, 10, 5
DAY_SECONDS = 86_400
CONFIG = """
[clean]
exclude_seen = false
[split]
method = "leave_one_out"
[train]
embedding_dim = 16
layers = 1
heads = 1
epochs = 1
max_length = 8
learning_rate = 1e-5
device = "cpu"
[segment]
k = 2
min_segment_size = 10
"""

pytestmark = pytest.mark.usefixtures("one_thread")


def write_log(path: Path) -> Path:
    """Users take popular items and, just before the last event, any item: validation cannot choose popularity."""
    rng = np.random.default_rng(0)
    chance = 1 / np.arange(1, ITEMS + 1) ** 1.2
    items = rng.choice(ITEMS, (USERS, LENGTH), p=chance / chance.sum())
    items[:, -2] = rng.integers(ITEMS // 2, ITEMS, USERS)
    items[:, -1] = rng.integers(0, POPULAR, USERS)
    columns = {
        "user_id": [f"u{user:03}" for user in np.repeat(np.arange(USERS), LENGTH)],
        "item_id": [f"i{item:03}" for item in items.ravel()],
        "timestamp": np.tile(np.arange(LENGTH), USERS) * DAY_SECONDS + 1_700_000_000,
    }
    pl.DataFrame(columns).write_csv(path)
    return path


def call(*words: object, code: int = 0) -> str:
    """The output on one line."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_a_release_that_popularity_beats_stands_by_until_a_person_lets_it_answer(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    events, repository = write_log(tmp_path / "events.csv"), tmp_path / "repository"
    places = ("--runs", tmp_path / "runs", "--repository", repository)
    run = ("run", "--events", events, "--config", tmp_path / "config.toml", "--run", "one", *places)

    output = call(*run, code=STANDS_BY)
    assert "Release 1 stands by and answers nobody. A rule of one line, `popularity`, predicts better" in output
    assert 'segrec-train traffic 1=100 --reason "why"' in output
    reason = read_manifest(repository / MODEL_NAME / "1").stands_by
    assert reason.startswith("A rule of one line, `popularity`, predicts better than the release as served: NDCG@10 ")
    assert active_release(repository) is None
    assert "stands by. A rule" in call("traffic", "--repository", repository)
    assert "is complete already" in call(*run, code=STANDS_BY)

    forced = call("publish", "--run", "one", *places, "--force", "a demo for the board")
    assert "Release 2 answers all users" in forced
    assert "Release 2 has the model, the items and the segments of release 1: nothing differs." in forced
    manifest = read_manifest(repository / MODEL_NAME / "2")
    assert (manifest.stands_by, manifest.forced) == ("", "a demo for the board")
    entry = read_audit(repository)[-1]
    assert (entry.reason, entry.details["forced"]) == ("a demo for the board", [reason])

    call("traffic", "1=100", "--reason", "let us see", "--repository", repository)
    assert (read_traffic(repository).stable, stands_by(repository, 1)) == (1, "")
    active = active_release(repository)
    assert active is not None
    assert active.number == 1
    assert "Release 2 answers instead of release 1." in call("rollback", "--repository", repository)
