"""The command `segrec-train diff`, which compares two releases."""

from pathlib import Path
from typing import Annotated

import typer

from server.core.repository.traffic import read_traffic
from training.cli.console import command_console
from training.cli.options import REPOSITORY, RUNS, ConfigFile, Repository, Runs, log_of, release_number
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
        list[str] | None,
        typer.Option(
            "--events", help="Log of real users; repeat it for more files; default: the log of a release's run."
        ),
    ] = None,
    users: Annotated[int, typer.Option("--users", min=1, help="Number of users to compare, drawn at random.")] = 2_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random draw.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="File for the HTML page.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for all figures as JSON.")] = None,
    config: ConfigFile = None,
    runs: Runs = RUNS,
    repository: Repository = REPOSITORY,
) -> None:
    """Show what would change for real users if one release replaced another."""
    with command_console() as console:
        from training.data.reading.tables import check_directory
        from training.reports.diff.diff import diff as compare_releases
        from training.reports.diff.page import write_page
        from training.reports.diff.wording import tables

        log = log_of(events) if events else None
        if log is None and config is not None:
            raise ConfigError("--config describes the log of --events; give both, or none.")
        for path in (out, json_file):
            if path is not None:
                check_directory(path)
        numbers = number_of_release(before, repository), number_of_release(after, repository)
        progress = console.start_stage("diff")
        result = compare_releases(repository, numbers, runs, log, load_config(config), users, seed, progress)
        console.end_stage()
        console.print(tables(result))
        if json_file:
            write_atomically(json_file, result.model_dump_json(indent=1) + "\n")
        if out:
            write_page(result, repository, out)
            console.print(f"The page is {out}; open it in a browser.", soft_wrap=True)


def number_of_release(name: str, repository: Path) -> int:
    """The number of the release that `name` means: a number, `newest`, `stable` or `canary`.

    Raises ConfigError for any other name and for `canary` without a canary, PublishError for `newest` in an empty
    repository, DamagedTraffic for `stable` and `canary` when the traffic file cannot be read.
    """
    if name not in ("stable", "canary"):
        return release_number(name, repository)
    traffic = read_traffic(repository)
    if name == "canary" and not traffic.canary:
        raise ConfigError(f"There is no canary in {repository}; name a release by its number.")
    return traffic.canary if name == "canary" else traffic.stable or release_number("newest", repository)
