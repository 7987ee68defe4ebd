"""The commands `traffic`, `rollback`, `audit` and `prune` of `segrec-train`."""

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
"""Number of good releases that `prune` keeps by default."""

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
    """Set which release answers which share of the users; without arguments, show it."""
    with telling() as terminal:
        from segrec.traffic import user_at_host

        from training.cli.traffic_tables import in_force
        from training.publish.traffic import set_traffic

        check_repository(repository)
        if not shares and shadow is None and guard is None:
            if reason or by:
                raise ConfigError("--reason and --by go with a change; give a share, --shadow or --guard.")
            _show(terminal, repository)
            return
        after = set_traffic(repository, shares or [], shadow, guard, by or user_at_host(), reason)
        terminal.console.print(in_force(repository, after))


@commands.command()
def rollback(reason: Reason = "", by: By = None, repository: Repository = REPOSITORY) -> None:
    """Take the last change of the traffic back: the canary first, then the stable release."""
    with telling() as terminal:
        from segrec.traffic import user_at_host

        from training.publish.traffic import roll_back

        check_repository(repository)
        _, summary = roll_back(repository, by or user_at_host(), reason)
        terminal.console.print(summary)


@commands.command()
def audit(
    last: Annotated[int, typer.Option("--last", min=1, help="Number of entries, the latest.")] = 20,
    repository: Repository = REPOSITORY,
) -> None:
    """Show who published, promoted, rolled back and pruned what, when and why."""
    with telling() as terminal:
        from training.cli.traffic_tables import audit_table

        check_repository(repository)
        entries = read_audit(repository)
        if not entries:
            terminal.console.print(f"Nothing has been noted in {repository} yet.")
            return
        terminal.console.print(audit_table(entries[-last:]))


@commands.command()
def prune(
    retain: Annotated[int, typer.Option("--retain", min=1, help="Number of newest good releases to keep.")] = RETAIN,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show which releases would be deleted.")] = False,
    reason: Reason = "",
    by: By = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Delete old releases, but none that answers, is a shadow, or that a roll-back could go to."""
    with telling() as terminal:
        from segrec.traffic import user_at_host

        from training.publish.prune_releases import prune as prune_releases

        check_repository(repository)
        done = prune_releases(repository, retain, by or user_at_host(), reason, dry_run)
        gone, kept = (", ".join(map(str, numbers)) for numbers in (done.gone, done.kept))
        if not done.gone:
            terminal.console.print(f"Nothing to take out; there: {kept or 'none'}.")
            return
        verb = "Would take out" if dry_run else "Took out"
        terminal.console.print(f"{verb} {gone} ({done.freed_bytes / 1e6:,.1f} MB); there: {kept}.")


def check_repository(repository: Path) -> None:
    """Raises PublishError where there is no model repository."""
    if not repository.is_dir():
        raise PublishError(f"There is no model repository {repository}; `segrec-train run` makes one.")


def _show(terminal: TrainConsole, repository: Path) -> None:
    from training.cli.traffic_tables import in_force

    try:
        terminal.console.print(in_force(repository, read_traffic(repository)))
    except DamagedTraffic:
        terminal.console.print("The traffic that was set last, which running servers still follow:")
        terminal.console.print(in_force(repository, last_traffic(repository)))
        raise
