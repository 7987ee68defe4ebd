"""`segrec-train diff`; `training.cli.main` takes it in."""

from pathlib import Path
from typing import Annotated

import typer

from server.core.repository.traffic import read_traffic
from training.cli.console import telling
from training.cli.options import REPOSITORY, RUNS, ConfigFile, Repository, Runs, check_files, release_number
from training.config import load_config
from training.errors import ConfigError
from training.runs import write_atomically

commands = typer.Typer()

ReleaseArgument = Annotated[str, typer.Argument(help="Number of a release; or newest, stable, canary.")]


@commands.command()
def diff(
    before: ReleaseArgument,
    after: ReleaseArgument,
    events: Annotated[
        Path | None, typer.Option("--events", help="Log of real users; left out: that of the run of a release.")
    ] = None,
    users: Annotated[int, typer.Option("--users", min=1, help="So many of them, drawn at random.")] = 2_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seeds the draw.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Where a page on it is written, as HTML.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where all of it is written for machines.")] = None,
    config: ConfigFile = None,
    runs: Runs = RUNS,
    repository: Repository = REPOSITORY,
) -> None:
    """Say what would change for real users if one release answered in the place of another."""
    with telling() as told:
        from training.data.tables import check_directory
        from training.reports.diff.diff import diff as work
        from training.reports.diff.page import write_page
        from training.reports.diff.wording import tables

        check_files(events)
        if events is None and config is not None:
            raise ConfigError("--config says how a log is read; give it with --events.")
        for path in (out, json_file):
            if path is not None:
                check_directory(path)
        numbers = numbered(before, repository), numbered(after, repository)
        progress = told.progress_of("diff")
        found = work(repository, numbers, runs, events, load_config(config), users, seed, progress)
        told.finish()
        told.console.print(tables(found))
        if json_file:
            write_atomically(json_file, found.model_dump_json(indent=1) + "\n")
        if out:
            write_page(found, repository, out)
            told.console.print(f"The page is {out}; open it in a browser.", soft_wrap=True)


def numbered(name: str, repository: Path) -> int:
    """The number of a release by number, `newest`, `stable` or `canary`. Raises ConfigError, PublishError.

    Raises DamagedTraffic where the last two are asked for and what is in force cannot be read.
    """
    if name not in ("stable", "canary"):
        return release_number(name, repository)
    traffic = read_traffic(repository)
    if name == "canary" and not traffic.canary:
        raise ConfigError(f"There is no canary in {repository}; name a release by its number.")
    return traffic.canary if name == "canary" else traffic.stable or release_number("newest", repository)
