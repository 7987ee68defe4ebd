"""The commands `traffic`, `rollback` and `audit` of `segrec-train`."""

from pathlib import Path
from typing import Annotated

import typer

from server.core.errors import DamagedTraffic
from server.core.repository.audit import read_audit
from server.core.repository.traffic import last_traffic, read_traffic
from training.cli.console import TrainConsole, command_console
from training.cli.options import REPOSITORY, By, Repository
from training.cli.tracking import follow
from training.errors import ConfigError, PublishError

commands = typer.Typer()

Reason = Annotated[str, typer.Option("--reason", help="The reason, noted in the audit.")]


@commands.command()
def traffic(
    shares: Annotated[
        list[str] | None, typer.Argument(metavar="[RELEASE=PERCENT …]", help="8=100, or 7=95 8=5, or newest=100.")
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(
            "--shadow", help="A release whose answers are computed and compared, but never returned; or none."
        ),
    ] = None,
    guard: Annotated[
        str | None,
        typer.Option(
            "--guard", help="Limits that take the canary out: errors=0.01,p99=50ms,window=30,min=100 …; or none."
        ),
    ] = None,
    reason: Reason = "",
    by: By = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Set the share of users that each release answers; without arguments, show the shares."""
    with command_console() as console:
        from segrec.traffic import user_at_host

        from training.cli.traffic_tables import traffic_in_force
        from training.publish.traffic import set_traffic

        check_repository(repository)
        if not shares and shadow is None and guard is None:
            if reason or by:
                raise ConfigError("--reason and --by belong to a change; give a share, --shadow or --guard as well.")
            _show(console, repository)
            return
        after = set_traffic(repository, shares or [], shadow, guard, by or user_at_host(), reason)
        console.print(traffic_in_force(repository, after))
        follow(console, repository)


@commands.command()
def rollback(reason: Reason = "", by: By = None, repository: Repository = REPOSITORY) -> None:
    """Undo the last change of the traffic: the canary first, then the stable release."""
    with command_console() as console:
        from segrec.traffic import user_at_host

        from training.publish.traffic import roll_back

        check_repository(repository)
        _, summary = roll_back(repository, by or user_at_host(), reason)
        console.print(summary)
        follow(console, repository)


@commands.command()
def audit(
    last: Annotated[int, typer.Option("--last", min=1, help="Number of latest entries to show.")] = 20,
    repository: Repository = REPOSITORY,
) -> None:
    """Show who published, promoted, rolled back and pruned what, when and why."""
    with command_console() as console:
        from training.cli.traffic_tables import audit_table

        check_repository(repository)
        entries = read_audit(repository)
        if not entries:
            console.print(f"The audit of {repository} has no entries yet.")
            return
        console.print(audit_table(entries[-last:]))


def check_repository(repository: Path) -> None:
    """Raises PublishError when the directory does not exist."""
    if not repository.is_dir():
        raise PublishError(f"There is no model repository {repository}; `segrec-train run` creates it.")


def _show(console: TrainConsole, repository: Path) -> None:
    from training.cli.traffic_tables import traffic_in_force

    try:
        console.print(traffic_in_force(repository, read_traffic(repository)))
    except DamagedTraffic:
        console.print("The last valid traffic, which running servers still follow:")
        console.print(traffic_in_force(repository, last_traffic(repository)))
        raise
