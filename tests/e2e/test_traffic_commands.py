"""`segrec-train traffic`, `rollback`, `audit` and `prune` as people use them."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.core.repository.traffic import TRAFFIC, read_traffic
from tests.support.releases import tiny_release
from training.cli.main import app
from training.repository import release_numbers
from training.runs import Run


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        tiny_release(tmp_path, number)
    return tmp_path


def call(repository: Path, *arguments: str, code: int = 0) -> str:
    """The output on one line."""
    result = CliRunner().invoke(app, [*arguments, "--repository", str(repository)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_a_release_gets_one_per_cent_then_all_and_is_taken_back(repository: Path) -> None:
    assert "The newest good release answers everyone" in call(repository, "traffic")
    call(repository, "traffic", "2=100")
    output = call(repository, "traffic", "3=1", "--shadow", "1", "--guard", "errors=0.01,p99=50ms", "--by", "ada")
    assert "Release 3 answers 1 % of the users, release 2 answers the others." in output
    assert "The guard takes release 3 out above 1 % errors or a p99 of 50 ms over 30 s of 100 answers" in output
    assert "Set by ada at" in output
    call(repository, "traffic", "3=100", "--reason", "it held")
    output = call(repository, "traffic")
    assert "Release 3 answers everyone; a newly published release stands by until it gets a share." in output
    assert "because: it held" in output
    assert "Release 2 answers instead of release 3." in call(repository, "rollback", "--reason", "odd items")
    output = call(repository, "audit", "--last", "3")
    assert output.index("2=99 3=1, shadow 1") < output.index("3=100") < output.index("odd items")


def test_an_audit_of_nothing(repository: Path) -> None:
    assert "has no entries yet" in call(repository, "audit")


def test_damaged_traffic_is_shown_with_the_last_good_traffic_and_can_be_set_anew(repository: Path) -> None:
    call(repository, "traffic", "2=100")
    (repository / TRAFFIC).write_text("{")
    output = call(repository, "traffic", code=1)
    assert "Release 2 answers everyone" in output
    assert "is damaged" in output
    assert "is damaged" in call(repository, "prune", code=1)
    call(repository, "traffic", "3=100")
    assert read_traffic(repository).previous == (2,)


def test_wrong_arguments_change_nothing(repository: Path) -> None:
    assert "is not a share" in call(repository, "traffic", "3", code=2)
    assert "no release 9" in call(repository, "traffic", "9=100", code=1)
    assert "belong to a change" in call(repository, "traffic", "--reason", "why", code=2)
    assert not (repository / TRAFFIC).exists()


def test_pruning_says_what_it_does(repository: Path) -> None:
    assert call(repository, "prune", "--retain", "2", "--dry-run").startswith("Would delete release 1 (")
    assert release_numbers(repository) == [1, 2, 3]
    assert "kept: 2, 3." in call(repository, "prune", "--retain", "2")
    assert call(repository, "prune") == "No release to delete; kept: 2, 3."
    assert "deleted 1;" in call(repository, "audit")


def test_pruning_by_age_says_what_stays_though_it_is_old(repository: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    Run.create(runs, run_id="one")
    call(repository, "traffic", "2=100")
    output = call(repository, "prune", "--retention", "30d", "--runs", str(runs))
    assert "Deleted release 1 (" in output
    assert "Release 3 has no event younger than 30d" in output, "a roll-back goes there"
    assert "Release 2 has no event younger than 30d. It stays, because the traffic needs it" in output
    assert "No run to delete; kept: one." in output
    assert "no directory" in call(repository, "prune", "--retention", "30d", "--runs", str(runs / "none"), code=1)
    for words in ("400", "0d", "d", "-1d", "１d", "99999d"):
        assert "such as 400d" in call(repository, "prune", "--retention", words, code=2)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("repository/.pruned", "Old releases of"),
        ("repository/.traffic.lock/x", "Old releases of"),
        ("repository/audit.jsonl/x", "Old releases of"),
        ("runs/.pruned", "Runs under"),
        ("runs/.rewrite.lock/x", "cannot be written"),
    ],
)
def test_where_nothing_can_be_written_pruning_is_refused_in_one_sentence(tmp_path: Path, file: str, why: str) -> None:
    for number in (1, 2, 3):
        tiny_release(tmp_path / "repository", number)
    for run_id in ("one", "two"):
        Run.create(tmp_path / "runs", run_id=run_id)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("in the way")
    words = ["--retain", "1", "--retain-runs", "1", "--runs", str(tmp_path / "runs")]
    output = call(tmp_path / "repository", "prune", *words, code=1)
    assert why in output
    assert "Traceback" not in output
    assert "Unexpected error" not in output
    if "repository" in file:
        assert release_numbers(tmp_path / "repository") == [1, 2, 3]
    assert {path.parent.name for path in (tmp_path / "runs").glob("*/run.json")} == {"one", "two"}


@pytest.mark.parametrize("command", ["traffic", "rollback", "audit", "prune"])
def test_without_a_repository_there_is_a_sentence(tmp_path: Path, command: str) -> None:
    assert "There is no model repository" in call(tmp_path / "none", command, code=1)
    assert not (tmp_path / "none").exists()
