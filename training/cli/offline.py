"""The commands of `segrec-train` that answer for all users of a run without a server: `embed` and `recommend`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.cli.console import TrainConsole, command_console
from training.cli.options import RUNS, RunId, Runs, SeveralEvents, log_of
from training.runs import Run

if TYPE_CHECKING:
    from server.core.release import Release
    from training.data.reading.sources import Log
    from training.offline.users import OfflineUsers

commands = typer.Typer()

Out = Annotated[Path, typer.Option("--out", help="Output file, Parquet.")]
OtherEvents = Annotated[
    list[str] | None,
    typer.Option("--events", help="Answer for the users of this log, read and cleaned as the run's, not of the run."),
]


@commands.command(cls=SeveralEvents)
def embed(run_id: RunId, out: Out, events: OtherEvents = None, runs: Runs = RUNS) -> None:
    """Write the vector of each user of a segmented run, or of another log: user_id, embedding."""
    with command_console() as console:
        from training.offline.parts_file import check_parquet, write_parts
        from training.offline.users import vector_parts
        from training.publish.publish import unpublished_release

        log = log_of(events) if events else None
        check_parquet(out)
        run = Run.open(runs, run_id)
        users = _users(console, "embed", run, log, unpublished_release(run) if log else None)
        count = write_parts(vector_parts(users, console.start_stage("embed")), out)
        console.end_stage()
        console.print(f"The vectors of {count:,} users are in {out}.")
        if users.unknown_count:
            console.print(f"Left out: {users.unknown_count:,} users, since the run knows none of their events.")


@commands.command(cls=SeveralEvents)
def recommend(
    run_id: RunId,
    out: Out,
    top_k: Annotated[int, typer.Option("--top-k", min=1, max=500, help="Items for each user.")] = 10,
    events: OtherEvents = None,
    runs: Runs = RUNS,
) -> None:
    """Write the best items of each user of a segmented run, or of another log, as a server would answer: user_id, rank,
    item_id, title, score, reason.
    """
    with command_console() as console:
        from training.offline.parts_file import check_parquet, write_parts
        from training.offline.recommend import query_of, recommendations
        from training.publish.publish import unpublished_release

        log = log_of(events) if events else None
        check_parquet(out)
        run = Run.open(runs, run_id)
        run.require("segment")
        release = unpublished_release(run)
        users = _users(console, "recommend", run, log, release)
        progress = console.start_stage("recommend")
        write_parts(recommendations(release, users, query_of(top_k, {}), progress), out)
        console.end_stage()
        console.print(f"Up to {top_k} items for each of {len(users.user_ids):,} users are in {out}.")
        if users.unknown_count:
            console.print(f"Popular items: {users.unknown_count:,} users, since the run knows none of their events.")


def _users(console: TrainConsole, stage: str, run: Run, log: "Log | None", release: "Release | None") -> "OfflineUsers":
    """The users of the run, or those of the log, of whose rows an account is printed."""
    from training.offline.users import OfflineUsers

    if log is None or release is None:
        return OfflineUsers.of_run(run)
    users, account = OfflineUsers.of_log(run, log, release, console.start_stage(stage))
    console.end_stage()
    console.print(account.table())
    return users
