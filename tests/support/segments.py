"""A release on a planted log, made by `segrec-train` with a small encoder in a few seconds."""

from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner, Result

from tests.support.logs import write_planted
from training.cli.main import app

CONFIG = """
[train]
embedding_dim = 16
layers = 1
heads = 2
epochs = 2
max_length = 16
[segment]
k = 4
"""


@dataclass(frozen=True)
class Place:
    """A directory with a log, its runs and its releases."""

    path: Path

    @property
    def events(self) -> Path:
        return self.path / "events.csv"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def repository(self) -> Path:
        return self.path / "repository"

    def call(self, command: str, *words: object) -> Result:
        """`segrec-train command` on this repository."""
        everything = (command, *words, "--repository", self.repository)
        return CliRunner().invoke(app, [str(word) for word in everything])


def released(path: Path, **shape: int) -> Place:
    """Release 1 of run `one`, on a planted log of the given shape with a table of items."""
    place, result = ran(path, **shape)
    assert result.exit_code == 0, result.output
    return place


def ran(path: Path, *words: object, **shape: int) -> tuple[Place, Result]:
    """The same, with more words for `segrec-train run`, and what came of it."""
    place = Place(path)
    _, items, _ = write_planted(path, **shape)
    (path / "config.toml").write_text(CONFIG)
    files = ("--events", place.events, "--items", items, "--config", path / "config.toml")
    return place, place.call(
        "run", *files, "--runs", place.runs, "--run", "one", "--force", "rules win on so small a log", *words
    )
