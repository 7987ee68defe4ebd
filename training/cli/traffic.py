"""The commands of `segrec-train` about which release answers, and what was done; `training.cli.main` takes them in."""

from pathlib import Path
from typing import Annotated

import typer

from server.core.errors import DamagedTraffic
from server.core.repository.audit import read_audit
from server.core.repository.traffic import last_traffic, read_traffic
from training.cli.console import TrainConsole, telling
from training.cli.options import REPOSITORY, By, Repository
from training.errors import ConfigError, PublishError

commands = typer.Typer()

RETAIN = 5
"""So many good releases stay where nothing else is asked for."""

Reason = Annotated[str, typer.Option("--reason", help="Why, for the audit.")]


@commands.command()
def traffic(
    shares: Annotated[
        list[str] | None, typer.Argument(metavar="[RELEASE=PERCENT …]", help="8=100, or 7=95 8=5, or newest=100.")
    ] = None,
    shadow: Annotated[
        str | None, typer.Option("--shadow", help="A release that is computed and compared, never returned; or none.")
    ] = None,
    guard: Annotated[
        str | None,
        typer.Option("--guard", help="Takes the canary out: errors=0.01,p99=50ms,window=30,min=100 …; or none."),
    ] = None,
    reason: Reason = "",
    by: By = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Say which release answers which share of the users; alone: show it."""
    with telling() as told:
        from training.cli.traffic_tables import in_force
        from training.publish.traffic import (
            TrafficChange,
            parse_guard,
            parse_shadow,
            parse_shares,
            set_traffic,
            this_person,
        )

        check_repository(repository)
        if not shares and shadow is None and guard is None:
            if reason or by:
                raise ConfigError("--reason and --by go with a change; say which release shall answer.")
            _show(told, repository)
            return
        wanted = TrafficChange(
            parse_shares(shares) if shares else None,
            None if shadow is None else parse_shadow(shadow),
            None if guard is None else parse_guard(guard),
        )
        told.console.print(in_force(repository, set_traffic(repository, wanted, by or this_person(), reason)))


@commands.command()
def rollback(reason: Reason = "", by: By = None, repository: Repository = REPOSITORY) -> None:
    """Take the last change of the traffic back: the canary first, then the stable release."""
    with telling() as told:
        from training.publish.traffic import roll_back, this_person

        check_repository(repository)
        _, summary = roll_back(repository, by or this_person(), reason)
        told.console.print(summary)


@commands.command()
def audit(
    last: Annotated[int, typer.Option("--last", min=1, help="So many of the latest entries.")] = 20,
    repository: Repository = REPOSITORY,
) -> None:
    """Show who published, promoted, rolled back and pruned what, when and why."""
    with telling() as told:
        from training.cli.traffic_tables import audit_table

        check_repository(repository)
        entries = read_audit(repository)
        if not entries:
            told.console.print(f"Nothing has been noted in {repository} yet.")
            return
        told.console.print(audit_table(entries[-last:]))


@commands.command()
def prune(
    retain: Annotated[int, typer.Option("--retain", min=1, help="So many of the newest good releases stay.")] = RETAIN,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    reason: Reason = "",
    by: By = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Delete old releases, but none that answers, is a shadow, or that a roll-back could go to."""
    with telling() as told:
        from training.publish.prune_releases import prune as work
        from training.publish.traffic import this_person

        check_repository(repository)
        done = work(repository, retain, by or this_person(), reason, dry_run)
        gone, kept = (", ".join(map(str, numbers)) for numbers in (done.gone, done.kept))
        if not done.gone:
            told.console.print(f"Nothing to take out; there: {kept or 'none'}.")
            return
        verb = "Would take out" if dry_run else "Took out"
        told.console.print(f"{verb} {gone} ({done.freed_bytes / 1e6:,.1f} MB); there: {kept}.")


def check_repository(repository: Path) -> None:
    """Raises PublishError where there is no model repository."""
    if not repository.is_dir():
        raise PublishError(f"There is no model repository {repository}; `segrec-train run` makes one.")


def _show(told: TrainConsole, repository: Path) -> None:
    from training.cli.traffic_tables import in_force

    try:
        told.console.print(in_force(repository, read_traffic(repository)))
    except DamagedTraffic:
        told.console.print("What was set last, and what servers go on with that run:")
        told.console.print(in_force(repository, last_traffic(repository)))
        raise
