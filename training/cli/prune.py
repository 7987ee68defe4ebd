"""The command `prune` of `segrec-train`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from training.cli.console import TrainConsole, command_console
from training.cli.options import REPOSITORY, RUNS, By, Repository, parse_days
from training.cli.traffic import Reason, check_repository
from training.errors import RunError

commands = typer.Typer()

RETAIN = 5
"""Number of good releases that `prune` keeps by default."""


@commands.command()
def prune(
    retain: Annotated[int, typer.Option("--retain", min=1, help="Number of newest good releases to keep.")] = RETAIN,
    retain_runs: Annotated[
        int | None, typer.Option("--retain-runs", min=1, help="Number of newest runs to keep; default: all.")
    ] = None,
    retention: Annotated[
        str | None, typer.Option("--retention", metavar="DAYS", help="Also delete older data, such as 400d.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    reason: Reason = "",
    by: By = None,
    repository: Repository = REPOSITORY,
    runs: Annotated[Path | None, typer.Option("--runs", help=f"Directory of all runs; default: {RUNS}.")] = None,
) -> None:
    """Delete old releases and runs, except releases that the traffic needs, and runs of releases that stay.

    With a retention, older events are taken out of all runs, and releases and runs without younger events are deleted,
    except releases that the traffic names.
    """
    with command_console() as console:
        from segrec.traffic import user_at_host

        from training.privacy.prune_runs import prune_runs
        from training.publish.prune_releases import prune as prune_releases

        limit, now = parse_days(retention), datetime.now(UTC)
        check_repository(repository)
        if runs is not None and not runs.is_dir():
            raise RunError(f"There is no directory {runs} of runs; name it with --runs.")
        data_before = now - limit if limit else None
        releases = prune_releases(repository, retain, by or user_at_host(), reason, dry_run, data_before)
        size = f" ({releases.freed_bytes / 1e6:,.1f} MB)"
        _print_deleted(console, "release", releases.gone, releases.kept, size, dry_run)
        for number in releases.overdue:
            console.print(
                f"Release {number} has no event younger than {retention}. It stays, because the traffic needs it: "
                "publish a newer release, give it the traffic, and prune again."
            )
        if retain_runs is None and limit is None:
            return
        place = runs or RUNS
        if not place.is_dir():
            console.print(f"There is no directory {place} of runs; name it with --runs if there are runs.")
            return
        pruned = prune_runs(place, repository, retain_runs, limit, now, dry_run)
        _print_deleted(console, "run", pruned.gone, pruned.kept, "", dry_run)
        if limit and dry_run:
            console.print(f"Would take events from before {data_before:%Y-%m-%d} out of the runs that stay.")
        for file in pruned.cut:
            console.print(f"Took {file.rows:,} rows out of {file.path}." if file.rows else f"Deleted {file.path}.")


def _print_deleted(
    console: TrainConsole, what: str, gone: Sequence[object], kept: Sequence[object], size: str, dry_run: bool
) -> None:
    gone_names, kept_names = (", ".join(map(str, names)) for names in (gone, kept))
    if not gone:
        console.print(f"No {what} to delete; kept: {kept_names or 'none'}.")
        return
    verb = "Would delete" if dry_run else "Deleted"
    plural = what if len(gone) == 1 else f"{what}s"
    console.print(f"{verb} {plural} {gone_names}{size}; kept: {kept_names or 'none'}.")
