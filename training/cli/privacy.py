"""The command `forget` of `segrec-train`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from training.cli.console import command_console
from training.cli.options import REPOSITORY, RUNS, Erasures, Repository, Runs
from training.errors import ConfigError
from training.runs import write_atomically

commands = typer.Typer()


@commands.command()
def forget(
    user_ids: Annotated[
        list[str] | None, typer.Option("--user-id", help="Id of a user; give it several times for several.")
    ] = None,
    erasures: Erasures = None,
    runs: Runs = RUNS,
    repository: Repository = REPOSITORY,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the receipt as JSON.")] = None,
) -> None:
    """Delete users from all runs, and show what was deleted and what remains.

    Exit code 0 also if no run holds them. The log that runs are made of is left alone.
    """
    with command_console() as console:
        from training.data.left_out import both, erased_at, read_erasures
        from training.data.reading.tables import check_directory
        from training.privacy.forget import forget as work

        if not (user_ids or erasures):
            raise ConfigError("Name the users with --user-id ID, or with --erasures FILE.")
        if json_file:
            check_directory(json_file)
        named = erased_at(user_ids or (), int(time.time() * 1000))
        receipt = work(runs, repository, both(named, read_erasures(erasures)) if erasures else named)
        if json_file:
            write_atomically(json_file, receipt.model_dump_json(indent=1) + "\n")
        console.print(receipt.describe())
