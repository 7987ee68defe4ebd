"""`segrec-train publish --sign`: what it leaves in the repository, and what it says of a key that will not do."""

from pathlib import Path

from typer.testing import CliRunner, Result

from server.core.release import read_release
from server.core.repository import MODEL_NAME
from server.core.signature import MANIFEST_SIGNATURE, read_release_key
from tests.e2e.test_publish import finished_run
from tests.support.signing import write_keys
from training.cli import app


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


def test_a_key_that_will_not_do_is_said_before_anything_is_written(tmp_path: Path) -> None:
    finished_run(tmp_path)
    result = published(tmp_path, "--sign", str(tmp_path / "none.pem"))
    assert result.exit_code == 2
    assert "none.pem cannot be read" in result.stderr
    assert not (tmp_path / "repository").exists()
