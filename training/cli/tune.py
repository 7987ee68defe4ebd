"""The command `tune` of `segrec-train`."""

from importlib.util import find_spec
from typing import Annotated

import typer

from training.cli.console import command_console
from training.cli.options import RUNS, RunId, Runs
from training.errors import ConfigError
from training.runs import Run

commands = typer.Typer()

_MINUTES = 30.0


@commands.command()
def tune(
    run_id: RunId,
    runs: Runs = RUNS,
    space: Annotated[
        str, typer.Option("--space", help="What is tried: small, wide, or a TOML file of ranges (docs/OPERATIONS.md).")
    ] = "small",
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.01, help="Time limit; default: 30 if --trials is not given.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Limit of trials, those of earlier calls included.")
    ] = None,
) -> None:
    """Search for better settings of a prepared run's encoder, beside chance between seeds. It can be continued."""
    with command_console() as console:
        if find_spec("optuna") is None:
            raise ConfigError("tune needs the `optuna` package; run `pip install 'segrec-platform[tune]'`.")
        from training.tune.result import BEST
        from training.tune.space import read_space
        from training.tune.tune import tune as work

        asked = read_space(space)
        console.run = run = Run.open(runs, run_id)
        console.resume = f"segrec-train tune --run {run_id} --space {space}"
        limit = _MINUTES if minutes is None and trials is None else minutes
        result = work(run, asked, limit, trials, progress=console.start_stage("tune"))
        console.end_stage()
        console.print(result.table())
        console.print(f"The best settings are in {run.path / 'tune' / BEST}, for `segrec-train run --config`.")
