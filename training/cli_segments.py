"""The commands of `segrec-train` about segments that are there already; `training.cli` takes them in."""

from typing import Annotated

import typer

from training.runs import Run
from training.told import RUNS, RunId, Runs, telling

commands = typer.Typer()


@commands.command()
def sweep(
    run_id: RunId,
    runs: Runs = RUNS,
    k_range: Annotated[
        tuple[int, int] | None, typer.Option("--k-range", metavar="LEAST MOST", help="Left out: that of the run.")
    ] = None,
) -> None:
    """Try several numbers of segments, show what each gives, and say which one `--k auto` would choose."""
    with telling() as told:
        from training.k_sweep import checked_range
        from training.k_sweep import sweep_run as work

        asked = checked_range(k_range)
        told.run = opened = Run.open(runs, run_id)
        found = work(opened, asked, progress=told.progress_of("sweep"))
        told.finish()
        told.console.print(found.table(), found.reason, sep="\n")
