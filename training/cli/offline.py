"""The commands of `segrec-train` that answer for all users of a run without a server: `embed` and `recommend`."""

from pathlib import Path
from typing import Annotated

import typer

from training.cli.console import command_console
from training.cli.options import RUNS, RunId, Runs
from training.runs import Run

commands = typer.Typer()

Out = Annotated[Path, typer.Option("--out", help="Output file, Parquet.")]


@commands.command()
def embed(run_id: RunId, out: Out, runs: Runs = RUNS) -> None:
    """Write the vector of each user of a segmented run: user_id, embedding."""
    with command_console() as console:
        from training.offline.parts_file import check_parquet, write_parts
        from training.offline.users import OfflineUsers, vector_parts

        check_parquet(out)
        users = OfflineUsers.of_run(Run.open(runs, run_id))
        count = write_parts(vector_parts(users, console.start_stage("embed")), out)
        console.end_stage()
        console.print(f"The vectors of {count:,} users are in {out}.")


@commands.command()
def recommend(
    run_id: RunId,
    out: Out,
    top_k: Annotated[int, typer.Option("--top-k", min=1, max=500, help="Items for each user.")] = 10,
    runs: Runs = RUNS,
) -> None:
    """Write the best items of each user of a segmented run, as a server would answer: user_id, rank, item_id, title,
    score, reason.
    """
    with command_console() as console:
        from training.offline.parts_file import check_parquet, write_parts
        from training.offline.recommend import query_of, recommendations
        from training.offline.users import OfflineUsers
        from training.publish.publish import unpublished_release

        check_parquet(out)
        run = Run.open(runs, run_id)
        users = OfflineUsers.of_run(run)
        progress = console.start_stage("recommend")
        write_parts(recommendations(unpublished_release(run), users, query_of(top_k, {}), progress), out)
        console.end_stage()
        console.print(f"Up to {top_k} items for each of {len(users.user_ids):,} users are in {out}.")
