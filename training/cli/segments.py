"""The commands of `segrec-train` about existing segments: `drift`, `members`, `sweep` and `report`."""

from pathlib import Path
from typing import Annotated

import typer

from training.cli.console import command_console
from training.cli.options import (
    REPOSITORY,
    RUNS,
    ConfigFile,
    Events,
    ReleaseName,
    Repository,
    RunId,
    Runs,
    SeveralEvents,
    check_files,
    log_of,
    release_number,
)
from training.cli.tracking import track
from training.config import load_config
from training.errors import ConfigError
from training.runs import Run, write_atomically

commands = typer.Typer()


@commands.command(cls=SeveralEvents)
def drift(
    events: Events,
    release: ReleaseName = "newest",
    users: Annotated[Path | None, typer.Option("--users", help="Table of users; others are left out.")] = None,
    repository: Repository = REPOSITORY,
    config: ConfigFile = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for all figures as JSON.")] = None,
) -> None:
    """Measure how far users have moved since a release was made.

    Exit code 0: stable; 4: moved; 3: drifted, so train again. The log must hold whole histories, as the server's
    store does.
    """
    with command_console() as console:
        from training.data.reading.tables import check_directory
        from training.reports.drift import EXIT_CODES
        from training.reports.drift import drift as measure

        log = log_of(events)
        check_files(users)
        if json_file:
            check_directory(json_file)
        number = release_number(release, repository)
        result = measure(repository, number, log, load_config(config), users, console.start_stage("drift"))
        console.end_stage()
        if json_file:
            write_atomically(json_file, result.model_dump_json(indent=1) + "\n")
        console.print(result.tables())
        raise typer.Exit(EXIT_CODES[result.verdict])


@commands.command(cls=SeveralEvents)
def members(
    out: Annotated[Path, typer.Option("--out", help="Output file; its suffix chooses Parquet, CSV, TSV or NDJSON.")],
    release: ReleaseName = "newest",
    segment: Annotated[
        int | None, typer.Option("--segment", min=1, help="Id of a segment; default: all segments.")
    ] = None,
    events: Annotated[
        list[str] | None,
        typer.Option("--events", help="Assign the users of this log, not those of the run."),
    ] = None,
    config: ConfigFile = None,
    runs: Runs = RUNS,
    run_id: Annotated[str | None, typer.Option("--run", help="Name of the run that the release came from.")] = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Write the users of a segment, from the run of the release or from a log."""
    with command_console() as console:
        from training.data.reading.tables import check_writable, write_table
        from training.reports.members import members_of_log, members_of_run
        from training.repository import find_release
        from training.segments.notes import with_names

        if events and run_id is not None:
            raise ConfigError("Members come from the log of --events or from the run of --run; give only one of them.")
        if not events and config is not None:
            raise ConfigError("--config describes the log of --events; give both, or none.")
        log = log_of(events) if events else None
        check_writable(out)
        number = release_number(release, repository)
        found = None
        if log is not None:
            progress = console.start_stage("members")
            found = members_of_log(repository, number, segment, log, load_config(config), progress)
        users = found.users if found else members_of_run(repository, number, segment, runs, run_id)
        console.end_stage()
        write_table(users, out)
        if found:
            console.print(found.account.table())
        names = {one.segment_id: one.label for one in with_names(find_release(repository, number), repository).segments}
        whose = f"segment {segment} “{names[segment]}”" if segment else "all segments"
        console.print(f"{len(users):,} users of {whose} are in {out}.")
        if found and found.unknown_users:
            console.print(
                f"Left out: {found.unknown_users:,} users, since release {number} knows none of their events."
            )


@commands.command()
def sweep(
    run_id: RunId,
    runs: Runs = RUNS,
    k_range: Annotated[
        tuple[int, int] | None,
        typer.Option(
            "--k-range",
            metavar="MIN MAX",
            help="Smallest and largest k; default: the run's own. Tried: each up to 8, then steps of a quarter.",
        ),
    ] = None,
) -> None:
    """Compare several numbers of segments, and show which number `--k auto` would choose."""
    with command_console() as console:
        from training.segments.sweep import checked_range, sweep_run

        checked = checked_range(k_range)
        console.run = run = Run.open(runs, run_id)
        result = sweep_run(run, checked, progress=console.start_stage("sweep"))
        console.end_stage()
        console.print(result.table(), result.reason, *result.stability_notes(), sep="\n")


@commands.command()
def report(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Name of a segmented run.")],
    runs: Runs = RUNS,
    repository: Repository = REPOSITORY,
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory of the report; default: report/ of the run.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file whose [report] is used; default: that of the run.")
    ] = None,
) -> None:
    """Write an HTML page about a run's segments, readable offline, and its charts as PNG files."""
    with command_console() as console:
        from training.reports.segments.report import report as write_report

        console.run = run = Run.open(runs, run_id)
        settings = load_config(config).report if config else None
        page = write_report(run, repository, out, console.start_stage("report"), settings)
        console.end_stage()
        track(console, run)
        console.print(f"The report is {page}; open it in a browser.", soft_wrap=True)
