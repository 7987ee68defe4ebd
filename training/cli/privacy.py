"""The command `forget` of `segrec-train`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from training.cli.console import command_console
from training.cli.options import REPOSITORY, RUNS, Repository, Runs
from training.runs import write_atomically

commands = typer.Typer()


@commands.command()
def forget(
    user_ids: Annotated[list[str], typer.Option("--user-id", help="Id of a user; give it several times for several.")],
    runs: Runs = RUNS,
    repository: Repository = REPOSITORY,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the receipt as JSON.")] = None,
) -> None:
    """Delete users from all runs, and show what was deleted and what remains.

    Exit code 0 also if no run holds them. The log that runs are made of is left alone.
    """
    with command_console() as console:
        from training.data.left_out import erased_at
        from training.data.tables import check_directory
        from training.privacy.forget import forget as work

        if json_file:
            check_directory(json_file)
        receipt = work(runs, repository, erased_at(user_ids, int(time.time() * 1000)))
        if json_file:
            write_atomically(json_file, receipt.model_dump_json(indent=1) + "\n")
        console.print(receipt.describe())
