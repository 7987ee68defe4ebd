"""`drift`, `members` and `diff` say which rows of a log they leave out."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import record_of
from tests.support.releases import tiny_release
from training.cli.main import app
from training.data.account import Account
from training.reports.drift import Drift
from training.segments.drift_reference import DRIFT_REFERENCE, DriftReference

LOG = """user_id,item_id,action,value,timestamp
a,item-001,view,1,1700000000
a,item-001,view,1,1700000000
a,item-002,view,1,1700000100
b,item-003,view,1,1700000200
NULL,item-003,view,1,1700000300
b,,view,1,1700000400
c,item-004,view,1,1700000500
c,item-005,view,1,99999999999
c,item-005,view,1,soon
"""
DROP = '[columns]\nunreadable = "drop"\n'
DROPPED = dict.fromkeys(("unreadable timestamp", "impossible timestamp", "missing user_id", "missing item_id"), 1)
DROPPED["duplicates"] = 1


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("accounts")
    release = tiny_release(repository, dim=16)
    reference = DriftReference(
        user_count=40,
        mean_events=2.0,
        mean_distance=0.1,
        distance_edges=(),
        distance_users=(40,),
        doubtful_users=None,
        center=(0.0,) * 16,
        directions=(),
        variances=(),
    )
    (release / DRIFT_REFERENCE).write_text(reference.model_dump_json())
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["files"][DRIFT_REFERENCE] = record_of(release / DRIFT_REFERENCE).model_dump()
    (release / "manifest.json").write_text(json.dumps(manifest))
    assert release == repository / MODEL_NAME / "1"
    return repository


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "drop.toml").write_text(DROP)
    return tmp_path


def call(command: str, repository: Path, here: Path, *more: object) -> Result:
    words = [command, "--events", here / "log.csv", "--repository", repository, *more]
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def drift(repository: Path, here: Path, *more: object) -> Account:
    result = call("drift", repository, here, "--json", here / "drift.json", *more)
    assert result.exit_code in (0, 3, 4), result.output
    account = Drift.model_validate_json((here / "drift.json").read_bytes()).account
    assert f"{account.rows_in} events read, {account.rows_out} kept" in result.output
    return account


def dropped(account: Account) -> dict[str, int]:
    return {step.name: step.rows_dropped for step in account.steps if step.rows_dropped}


def test_drift_accounts_for_every_row(repository: Path, here: Path) -> None:
    account = drift(repository, here, "--config", here / "drop.toml")
    assert (account.rows_in, account.rows_out) == (9, 4)
    assert dropped(account) == DROPPED
    assert account.notes == ("as user_id, `NULL` (1) count as missing; [columns] missing_words changes the list",)


def test_drift_counts_the_events_of_other_users(repository: Path, here: Path) -> None:
    (here / "users.csv").write_text("user_id\na\nb\n-\n")
    account = drift(repository, here, "--config", here / "drop.toml", "--users", here / "users.csv")
    assert (account.rows_in, account.rows_out) == (9, 3)
    assert dropped(account) == DROPPED | {"other users": 1}
    assert "1 rows of users.csv have no user_id and are left out (row 3)" in account.notes


def test_words_for_nothing_may_be_ids_in_both_files(repository: Path, here: Path) -> None:
    (here / "users.csv").write_text("user_id\nNULL\n")
    (here / "drop.toml").write_text(f"{DROP}missing_words = []\n")
    account = drift(repository, here, "--config", here / "drop.toml", "--users", here / "users.csv")
    assert account.rows_out == 1
    assert "missing user_id" not in dropped(account)


def test_members_shows_the_account(repository: Path, here: Path) -> None:
    result = call("members", repository, here, "--config", here / "drop.toml", "--out", here / "members.csv")
    assert result.exit_code == 0, result.output
    assert "9 events read, 4 kept" in result.output
    for name in DROPPED:
        assert name in result.output
    assert "3 users of all segments are in" in " ".join(result.output.split())


def test_diff_shows_the_account(here: Path) -> None:
    tiny_release(here, 1)
    tiny_release(here, 2, seed=1)
    result = call("diff", here, here, "--config", here / "drop.toml", "--json", here / "diff.json", 1, 2)
    assert result.exit_code == 0, result.output
    assert "9 events read, 4 kept" in result.output
    assert json.loads((here / "diff.json").read_text())["account"]["rows_in"] == 9
