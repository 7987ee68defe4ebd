"""The commands of `segrec-train` about segments that are there already; `training.cli.main` takes them in."""

from pathlib import Path
from typing import Annotated

import typer

from training.cli.console import telling
from training.cli.options import (
    REPOSITORY,
    RUNS,
    ConfigFile,
    Events,
    ReleaseName,
    Repository,
    RunId,
    Runs,
    check_files,
    release_number,
)
from training.config import load_config
from training.errors import ConfigError
from training.runs import Run, write_atomically

commands = typer.Typer()


@commands.command()
def drift(
    events: Events,
    release: ReleaseName = "newest",
    users: Annotated[Path | None, typer.Option("--users", help="Table of the only users who count.")] = None,
    repository: Repository = REPOSITORY,
    config: ConfigFile = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where all of it is written for machines.")] = None,
) -> None:
    """Say how far users have moved from what a release was made of.

    Ends with 0 where they are stable, 4 where they have moved, 3 where they have drifted: train again. Give whole
    histories, as the server's store has them.
    """
    with telling() as told:
        from training.data.tables import check_directory
        from training.reports.drift import EXIT_CODES
        from training.reports.drift import drift as work

        check_files(events, users)
        if json_file:
            check_directory(json_file)
        number = release_number(release, repository)
        found = work(repository, number, events, load_config(config), users, told.progress_of("drift"))
        told.finish()
        if json_file:
            write_atomically(json_file, found.model_dump_json(indent=1) + "\n")
        told.console.print(found.tables())
        raise typer.Exit(EXIT_CODES[found.verdict])


@commands.command()
def members(
    out: Annotated[Path, typer.Option("--out", help="Parquet, CSV, TSV or NDJSON, by suffix.")],
    release: ReleaseName = "newest",
    segment: Annotated[int | None, typer.Option("--segment", min=1, help="Id of a segment; left out: all.")] = None,
    events: Annotated[Path | None, typer.Option("--events", help="Place the users of this log anew.")] = None,
    config: ConfigFile = None,
    runs: Runs = RUNS,
    run_id: Annotated[str | None, typer.Option("--run", help="The run that the release came from.")] = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Write the users of a segment: those of the run that the release came from, or of a log."""
    with telling() as told:
        from training.data.tables import check_writable, write_table
        from training.reports.members import members_of_log, members_of_run

        if events is not None and run_id is not None:
            raise ConfigError("Members come from a log by --events or from a run by --run; give one of them.")
        if events is None and config is not None:
            raise ConfigError("--config says how a log is read; give it with --events.")
        check_files(events)
        check_writable(out)
        number = release_number(release, repository)
        left_out = 0
        if events is None:
            found = members_of_run(repository, number, segment, runs, run_id)
        else:
            progress = told.progress_of("members")
            found, left_out = members_of_log(repository, number, segment, events, load_config(config), progress)
        told.finish()
        write_table(found, out)
        told.console.print(
            f"{len(found):,} users of {f'segment {segment}' if segment else 'all segments'} are in {out}."
        )
        if left_out:
            told.console.print(f"Left out: {left_out:,} users of whom release {number} knows nothing.")


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
        from training.segments.sweep import checked_range
        from training.segments.sweep import sweep_run as work

        asked = checked_range(k_range)
        told.run = opened = Run.open(runs, run_id)
        found = work(opened, asked, progress=told.progress_of("sweep"))
        told.finish()
        told.console.print(found.table(), found.reason, *found.stability_notes(), sep="\n")


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
        from training.reports.segments.report import report as work

        told.run = opened = Run.open(runs, run_id)
        page = work(opened, repository, out, progress=told.progress_of("report"))
        told.finish()
        told.console.print(f"The report is {page}; open it in a browser.", soft_wrap=True)
