"""`segrec-train publish --sign`: what it leaves in the repository, and what it says of a key that will not do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server.core.repository.audit import read_audit
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from server.core.repository.signature import MANIFEST_SIGNATURE, read_release_key
from tests.e2e.test_publish import finished_run
from tests.support.segments import ran
from tests.support.signing import write_keys
from training.cli.main import app
from training.repository import trust_only


@pytest.fixture(autouse=True)
def _trust_all_after() -> Iterator[None]:
    """`--release-key` holds for the process, which other tests go on with."""
    yield
    trust_only(None)


def published(tmp_path: Path, *more: str) -> Result:
    places = ("--runs", str(tmp_path / "runs"), "--repository", str(tmp_path / "repository"))
    return CliRunner().invoke(app, ["publish", "--run", "run", *places, *more])


def test_a_release_is_signed_where_it_is_asked_for(tmp_path: Path) -> None:
    finished_run(tmp_path)
    private, public = write_keys(tmp_path)
    model = tmp_path / "repository" / MODEL_NAME
    assert published(tmp_path, "--sign", str(private)).exit_code == 0
    assert MANIFEST_SIGNATURE not in read_release(model / "1", read_release_key(public)).manifest.files
    assert published(tmp_path).exit_code == 0
    assert not (model / "2" / MANIFEST_SIGNATURE).exists()


def test_a_run_of_all_stages_signs_its_release_and_shows_what_it_had_to_pass(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path)
    words = ("--sign", private, "--by", "ana")
    place, result = ran(tmp_path, *words, users=120, items=40, segments=4, events_per_user=12)
    assert result.exit_code == 0, result.output
    assert "Gates of the release" in result.output
    assert read_release(place.repository / MODEL_NAME / "1", read_release_key(public)).number == 1
    [line] = read_audit(place.repository)
    assert (line.what, line.who) == ("publish", "ana")


def test_a_key_that_will_not_do_is_said_before_anything_is_written(tmp_path: Path) -> None:
    finished_run(tmp_path)
    result = published(tmp_path, "--sign", str(tmp_path / "none.pem"))
    assert result.exit_code == 2
    assert "none.pem cannot be read" in result.stderr
    assert not (tmp_path / "repository").exists()


def test_with_a_release_key_the_release_of_a_stranger_is_no_parent_and_its_model_does_not_run(tmp_path: Path) -> None:
    finished_run(tmp_path)
    private, public = write_keys(tmp_path)
    assert published(tmp_path, "--sign", str(private)).exit_code == 0
    strange, _ = write_keys(tmp_path, "stranger")
    assert published(tmp_path, "--sign", str(strange)).exit_code == 0
    model = tmp_path / "repository" / MODEL_NAME
    trusting = ("--release-key", str(public), "publish", "--run", "run", "--runs", str(tmp_path / "runs"))
    result = CliRunner().invoke(app, [*trusting, "--repository", str(tmp_path / "repository")])
    assert result.exit_code == 0, result.output
    assert read_release(model / "3").manifest.parent_release == 1
    wrong = CliRunner().invoke(app, ["--release-key", str(private), "publish", "--run", "run"])
    assert wrong.exit_code == 2
    assert "--release-key: release_key" in wrong.stderr
