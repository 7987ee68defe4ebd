"""Options that several commands of `segrec-train` share, and functions that parse their values."""

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from typer.core import TyperCommand

from server.core.errors import SetupError
from server.core.repository.signature import read_release_key, read_signing_key
from training.errors import ConfigError, LogError, PublishError

if TYPE_CHECKING:
    from training.data.reading.sources import Log

Runs = Annotated[Path, typer.Option("--runs", help="Directory of all runs.")]


RunId = Annotated[str, typer.Option("--run", help="Name of the run, a directory in --runs.")]


NewRunId = Annotated[str | None, typer.Option("--run", help="Name of the run; an existing run is continued.")]


Repository = Annotated[Path, typer.Option("--repository", help="Triton's model repository.")]


EVENTS_HELP = (
    "The log: CSV, Parquet or NDJSON, one file, several, a directory or a pattern; a Delta or Iceberg table; "
    "postgresql://…?query=…."
)


Events = Annotated[list[str], typer.Option("--events", help=EVENTS_HELP)]


class SeveralEvents(TyperCommand):
    """A command whose option --events takes all values that follow it, as in `--events part-*.csv` in a shell."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before its second value and every further one."""
        repeated: list[str] = []
        for before, arg in pairwise(["", *args]):
            follows = before != "--events" and not arg.startswith("-") and _last_option(repeated) == "--events"
            repeated += ["--events", arg] if follows else [arg]
        return super().parse_args(ctx, repeated)


def _last_option(args: Sequence[str]) -> str | None:
    return next((arg for arg in reversed(args) if arg.startswith("-")), None)


Items = Annotated[Path | None, typer.Option("--items", help="Item table: id, title, category.")]


Users = Annotated[Path | None, typer.Option("--users", help="User table: id and labels.")]


ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file of settings; default: the built-in settings.")
]


Erasures = Annotated[
    Path | None,
    typer.Option("--erasures", help="Erased users, as `segrec-store export-erasures` wrote them."),
]


Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="start|last|TIME",
        help="start: keep the events for later nights; last: add the log to those of the last run; a time: take the "
        "log from that time on, and the last run's events before it.",
    ),
]


Contract = Annotated[
    Path | None,
    typer.Option("--contract", help="TOML file of limits for the log; beyond one of them the exit code is 5."),
]


ReleaseName = Annotated[str, typer.Option("--release", help="Number of a release, or newest.")]


Sign = Annotated[
    Path | None, typer.Option("--sign", metavar="KEY.pem", help="Ed25519 private key that signs the release.")
]


ReleaseKey = Annotated[
    Path | None,
    typer.Option(
        "--release-key",
        metavar="PUBLIC.pem",
        envvar="SEGREC_RELEASE_KEY",
        help="Ed25519 public key: releases that this key did not sign count as damaged, and their models do not run.",
    ),
]


Force = Annotated[
    str | None,
    typer.Option("--force", metavar="REASON", help="Publish although a gate that is a matter of judgement fails."),
]


By = Annotated[str | None, typer.Option("--by", help="Your name in the audit; default: user@host.")]


K = Annotated[str | None, typer.Option("--k", help="Number of segments, or auto: a sweep chooses the number.")]


MaxMinutes = Annotated[
    float | None,
    typer.Option(
        "--max-minutes",
        help="The epochs of training stop after this many minutes; reading the log, what follows the epochs, and all "
        "other stages come on top.",
    ),
]


Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of all random choices.")]


RUNS, REPOSITORY = Path("runs"), Path("model_repository")


def parse_k(text: str | None) -> int | Literal["auto"] | None:
    """The value of `--k`; None when the option is not given. Raises ConfigError unless `auto` or a number from 2 on."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 2:
        raise ConfigError(f"--k must be a number of segments from 2 on, or `auto`, not `{text}`.")
    return int(text)


def parse_days(text: str | None) -> timedelta | None:
    """The value of `--retention`; None when the option is not given. Raises ConfigError unless like `400d`."""
    if text is None:
        return None
    days = text.removesuffix("d")
    if not (text.endswith("d") and days.isascii() and days.isdecimal() and 1 <= int(days) <= 36_500):
        raise ConfigError(f"--retention must be a number of days from 1d to 36500d, such as 400d, not `{text}`.")
    return timedelta(days=int(days))


def signing_key(path: Path | None) -> Ed25519PrivateKey | None:
    """The key in the file of `--sign`; None when the option is not given. Raises ConfigError for an unusable file."""
    if path is None:
        return None
    try:
        return read_signing_key(path)
    except SetupError as error:
        raise ConfigError(f"--sign: {error}.") from error


def release_key(path: Path | None) -> Ed25519PublicKey | None:
    """The key in the file of `--release-key`; None when the option is not given. Raises ConfigError."""
    if path is None:
        return None
    try:
        return read_release_key(path)
    except SetupError as error:
        raise ConfigError(f"--release-key: {error}.") from error


def log_of(events: Sequence[str]) -> "Log":
    """The log that the values of `--events` name. Raises LogError for a value that is neither a file nor a table."""
    from training.data.reading.log_files import LogFiles
    from training.data.reading.sources import source_of

    logs = [source_of(text) for text in events]
    if len(logs) == 1 and not isinstance(logs[0], Path):
        return logs[0]
    paths = [log for log in logs if isinstance(log, Path)]
    if len(paths) < len(logs):
        raise LogError("A log of several parts is made of files; give one table or query, or files only.")
    return LogFiles.of(paths)


def check_night(since: str | None, contract: Path | None) -> None:
    """Raises ConfigError for an unusable value of `--since` or file of `--contract`, before there is a run."""
    from training.data.contract import read_contract
    from training.data.nightly import check_since

    if since is not None:
        check_since(since)
    if contract is not None:
        read_contract(contract)


def check_files(*paths: Path | None) -> None:
    """Raises LogError for the first path that is not a file."""
    for path in paths:
        if path is not None and not path.is_file():
            raise LogError(f"There is no file {path}.")


def release_number(name: str, repository: Path) -> int:
    """The release number that `name` means. Raises ConfigError for a bad name, PublishError when nothing is newest."""
    if name != "newest":
        if not name.isdecimal():
            raise ConfigError(f"A release is named by its number or `newest`, not `{name}`.")
        return int(name)
    from training.repository import newest_release

    newest = newest_release(repository)
    if newest is None:
        raise PublishError(f"There is no release in {repository}; `segrec-train run` creates one.")
    return newest.number
