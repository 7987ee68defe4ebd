"""The commands of `segrec-train` about segments that are there already; `training.cli` takes them in."""

from pathlib import Path
from typing import Annotated

import typer

from training.runs import Run
from training.told import REPOSITORY, RUNS, Repository, Runs, telling

commands = typer.Typer()


@commands.command()
def report(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run, segmented.")],
    runs: Runs = RUNS,
    repository: Repository = REPOSITORY,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the report goes; left out: report/ of the run.")
    ] = None,
) -> None:
    """Write a page on a run's segments that opens without a network, and its pictures as PNG files."""
    with telling() as told:
        from training.report import report as work

        told.run = opened = Run.open(runs, run_id)
        page = work(opened, repository, out, progress=told.progress_of("report"))
        told.finish()
        told.console.print(f"The report is {page}; open it in a browser.", soft_wrap=True)
