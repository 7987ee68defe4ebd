"""Options that several commands of `segrec-train` share, and what their values mean."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.core.errors import SetupError
from server.core.repository.signature import read_signing_key
from training.errors import ConfigError, LogError, PublishError

Runs = Annotated[Path, typer.Option("--runs", help="Where runs are kept.")]


RunId = Annotated[str, typer.Option("--run", help="The run, a directory under --runs.")]


NewRunId = Annotated[str | None, typer.Option("--run", help="The run's name; one that is there goes on.")]


Repository = Annotated[Path, typer.Option("--repository", help="Triton's model repository.")]


Events = Annotated[Path, typer.Option("--events", help="The log: CSV, Parquet or NDJSON.")]


Items = Annotated[Path | None, typer.Option("--items", help="Item table: id, title, category.")]


Users = Annotated[Path | None, typer.Option("--users", help="User table: id and labels.")]


ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; defaults without one.")]


ReleaseName = Annotated[str, typer.Option("--release", help="Number of a release, or newest.")]


Sign = Annotated[
    Path | None, typer.Option("--sign", metavar="KEY.pem", help="Ed25519 private key that signs the release.")
]


Force = Annotated[
    str | None, typer.Option("--force", metavar="REASON", help="Publish past gates that are a matter of judgement.")
]


By = Annotated[str | None, typer.Option("--by", help="Who does it, for the audit; left out: user@host.")]


K = Annotated[str | None, typer.Option("--k", help="Number of segments, or auto: chosen by a sweep.")]


MaxMinutes = Annotated[float | None, typer.Option("--max-minutes", help="Training stops after so long.")]


Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seeds every random choice.")]


RUNS, REPOSITORY = Path("runs"), Path("model_repository")


def k_of(text: str | None) -> int | Literal["auto"] | None:
    """What `--k` says, None where it is not given. Raises ConfigError for anything but a number from 2 on, or auto."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 2:
        raise ConfigError(f"--k is a number of segments from 2 on, or `auto`, not `{text}`.")
    return int(text)


def signing_key(path: Path | None) -> Ed25519PrivateKey | None:
    """The key that `--sign` names, None where it is not given. Raises ConfigError."""
    if path is None:
        return None
    try:
        return read_signing_key(path)
    except SetupError as error:
        raise ConfigError(f"--sign: {error}.") from error


def check_files(*paths: Path | None) -> None:
    """Raises LogError for the first file that is not there."""
    for path in paths:
        if path is not None and not path.is_file():
            raise LogError(f"There is no file {path}.")


def release_number(name: str, repository: Path) -> int:
    """The number that `--release` names. Raises ConfigError, PublishError for `newest` where there is none."""
    if name != "newest":
        if not name.isdecimal():
            raise ConfigError(f"--release is a number or `newest`, not `{name}`.")
        return int(name)
    from training.repository import newest_release

    newest = newest_release(repository)
    if newest is None:
        raise PublishError(f"There is no release in {repository}; `segrec-train run` makes one.")
    return newest.number
