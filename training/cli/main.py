"""The command line of `segrec-train`: all stages at once, or one by one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.cli import config as config_commands
from training.cli import diff, items, offline, privacy, prune, rules, segment_notes, segments, traffic
from training.cli import tune as tune_commands
from training.cli.console import STANDS_BY, TrainConsole, command_console
from training.cli.options import (
    EVENTS_HELP,
    REPOSITORY,
    RUNS,
    By,
    ConfigFile,
    Contract,
    Erasures,
    Events,
    Force,
    Items,
    K,
    MaxMinutes,
    NewRunId,
    ReleaseKey,
    Repository,
    RunId,
    Runs,
    Seed,
    SeveralEvents,
    Sign,
    Since,
    Users,
    check_files,
    check_night,
    log_of,
    parse_k,
    release_key,
)
from training.cli.push import push_of
from training.cli.tracking import track
from training.config import load_config
from training.errors import ConfigError, LogError
from training.fit.processes import Processes
from training.runs import Run
from training.tracking import check_tracking

if TYPE_CHECKING:
    pass

app = typer.Typer(
    help="Train Segrec on a behaviour log: user segments and recommendations, published as a release.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point."""
    app()


@app.callback()
def trust(key: ReleaseKey = None) -> None:
    """Options of all commands."""
    from training.repository import trust_only

    with command_console(Processes.from_environment()):
        trust_only(release_key(key))


@app.command(cls=SeveralEvents)
def run(
    events: Annotated[list[str] | None, typer.Option("--events", help=EVENTS_HELP)] = None,
    items: Items = None,
    users: Users = None,
    config: ConfigFile = None,
    erasures: Erasures = None,
    since: Since = None,
    contract: Contract = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Train on the built-in demo log, a year of grocery purchases.")
    ] = False,
    runs: Runs = RUNS,
    repository: Repository = REPOSITORY,
    run_id: NewRunId = None,
    k: K = None,
    max_minutes: MaxMinutes = None,
    seed: Seed = None,
    force: Force = None,
    by: By = None,
    sign: Sign = None,
) -> None:
    """Run all stages, from the log to a published release. An existing run continues where it stopped.

    Ends with 6 if the release stands by, since a rule of one line predicts better.
    """
    with command_console() as console:
        if bool(events) == demo:
            raise ConfigError("Give a log with --events FILE, or --demo; not both.")
        from training.cli.summary import summary
        from training.data import demo as demo_log
        from training.pipeline import RunInputs, run_all, with_overrides

        settings = load_config(config) if config or not demo else demo_log.CONFIG
        settings = with_overrides(settings, k=parse_k(k), max_minutes=max_minutes, seed=seed)
        if events:
            log = log_of(events)
        else:
            written = demo_log.write_demo(runs / ".demo")
            log, items, users = written.events, written.items, written.users
        check_files(items, users, settings.text.vectors, erasures, contract)
        check_night(since, contract)
        check_tracking(settings.tracking)
        push = push_of(console, settings.publish, force, by, sign)
        console.run = run = _open_or_create(runs, run_id, "demo" if demo else "run")
        inputs = RunInputs(log, items, users, settings, repository, erasures, since, contract)
        console.resume = f"segrec-train run … --run {run.path.name}"
        with _kept_if_prepared(console, run, is_new=run_id is None):
            finished_stages = run_all(run, inputs, push, console.start_stage)
        if not finished_stages:
            console.print(f"Run {run.path.name} is complete already.")
        console.end_stage()
        track(console, run, repository)
        console.print(summary(run, repository))
        _exit_if_standing_by(repository, run.figures("publish")["release"])


@app.command(cls=SeveralEvents)
def prepare(
    events: Events,
    items: Items = None,
    users: Users = None,
    config: ConfigFile = None,
    erasures: Erasures = None,
    since: Since = None,
    contract: Contract = None,
    runs: Runs = RUNS,
    run_id: NewRunId = None,
) -> None:
    """Read and clean a log into a new run."""
    with command_console() as console:
        from training.data.prepare import prepare as work

        settings, log = load_config(config), log_of(events)
        check_files(items, users, settings.text.vectors, erasures, contract)
        check_night(since, contract)
        console.run = run = _open_or_create(runs, run_id, "run")
        progress = console.start_stage("prepare")
        with _kept_if_prepared(console, run, is_new=run_id is None):
            result = work(run, log, items, users, settings, progress, erasures=erasures, since=since, contract=contract)
        console.end_stage()
        console.print(result.account.table())
        console.print(f"Prepared {run.path}; continue with `segrec-train train --run {run.path.name}`.")


@app.command()
def train(run_id: RunId, runs: Runs = RUNS, max_minutes: MaxMinutes = None, resume: bool = False) -> None:
    """Train the encoder on the prepared log.

    On several processes or machines: torchrun --nproc-per-node 2 -m -- training.cli.main train --run RUN.
    """
    with command_console(Processes.from_environment()) as console:
        from training.fit.train import train as work
        from training.pipeline import with_overrides

        console.run = run = Run.open(runs, run_id)
        console.resume = f"segrec-train train --run {run_id} --resume"
        settings = with_overrides(run.config(), k=None, max_minutes=max_minutes, seed=None).train
        check_tracking(run.config().tracking)
        work(run, settings=settings, resume=resume, progress=console.start_stage("train"))


@app.command()
def evaluate(run_id: RunId, runs: Runs = RUNS) -> None:
    """Measure the encoder on events that training did not see."""
    with command_console() as console:
        from training.evaluation.evaluate import evaluate as work

        console.run = run = Run.open(runs, run_id)
        result = work(run, progress=console.start_stage("evaluate"))
        console.end_stage()
        track(console, run)
        verdict = result.verdict(())
        console.print(*([verdict] if verdict else []), *result.tables(), *result.notes, sep="\n")


@app.command()
def compare(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN RUN …", help="Evaluated runs on the same data.")],
    runs: Runs = RUNS,
) -> None:
    """Show the figures of runs side by side, with a test of whether they differ by chance."""
    with command_console() as console:
        from training.evaluation.compare import compare_runs as work
        from training.evaluation.compare import comparison_table

        console.print(comparison_table(work([Run.open(runs, name) for name in run_ids])))


@app.command()
def export(run_id: RunId, runs: Runs = RUNS) -> None:
    """Write the encoder as an ONNX file and check the file."""
    with command_console() as console:
        from training.model.export import export as work

        console.run = run = Run.open(runs, run_id)
        work(run, progress=console.start_stage("export"))


@app.command()
def segment(run_id: RunId, runs: Runs = RUNS, repository: Repository = REPOSITORY, k: K = None) -> None:
    """Cluster users into segments, whose ids continue those of the newest release in the repository."""
    with command_console() as console:
        from training.cli.summary import segments_summary
        from training.segments.segment import segment as work
        from training.segments.sweep import read_sweep

        console.run = run = Run.open(runs, run_id)
        segment_count = parse_k(k) or run.config().segment.k
        work(run, repository, segment_count, progress=console.start_stage("segment"))
        console.end_stage()
        if segment_count == "auto" and (k_sweep := read_sweep(run)):
            console.print(k_sweep.table())
        console.print(segments_summary(run))


@app.command()
def publish(
    run_id: RunId,
    runs: Runs = RUNS,
    repository: Repository = REPOSITORY,
    max_loss: Annotated[
        float | None,
        typer.Option(
            "--max-loss", min=0, max=1, help="Largest share of the active release's NDCG@10 that may be lost."
        ),
    ] = None,
    force: Force = None,
    by: By = None,
    sign: Sign = None,
) -> None:
    """Publish the run as a release in the model repository, if it passes all gates.

    Ends with 6 if the release stands by, since a rule of one line predicts better.
    """
    with command_console() as console:
        from training.cli.summary import serving_hint
        from training.cli.traffic_tables import after_publishing, same_as_before
        from training.publish.publish import publish as work

        console.run = run = Run.open(runs, run_id)
        settings = run.config().publish
        if max_loss is not None:
            settings = settings.model_copy(update={"max_loss": max_loss})
        push = push_of(console, settings, force, by, sign)
        number = work(run, repository, push, console.start_stage("publish"))
        console.end_stage()
        track(console, run, repository)
        sentences = filter(None, [run.figures("publish")["beside_rules"], same_as_before(repository, number)])
        console.print(*sentences, serving_hint(run, repository, number), after_publishing(repository, number), sep="\n")
        _exit_if_standing_by(repository, number)


@app.command()
def compress(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run that is trained and exported.")],
    runs: Runs = RUNS,
    only: Annotated[
        str | None, typer.Option("--only", help="Some of int8,fp16,pruned,student, separated by commas.")
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option("--max-minutes", min=0.001, help="Limit of each training; default: the run's own training time."),
    ] = None,
) -> None:
    """Make smaller or faster runs from a run, and show what each gains and loses."""
    with command_console() as console:
        from training.derive.compress import WAYS
        from training.derive.compress import compress as work

        console.run = run = Run.open(runs, run_id)
        ways = tuple(only.split(",")) if only is not None else WAYS
        result = work(run, ways, max_minutes, progress=console.start_stage("compress"))
        console.end_stage()
        console.print(result.table())
        console.print("To publish one: `segrec-train segment --run …`, then `segrec-train publish --run …`.")


@app.command()
def fuse(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN RUN …", help="Runs trained on the same prepared data.")],
    runs: Runs = RUNS,
) -> None:
    """Combine several runs into one: average their scores, concatenate their embeddings."""
    with command_console() as console:
        from training.derive.fuse import fuse as work

        console.run = Run.open(runs, run_ids[0])
        result = work([Run.open(runs, name) for name in run_ids], progress=console.start_stage("train"))
        console.run = result.run
        console.end_stage()
        console.print(result.table())
        console.print(f"Fused; continue with `segrec-train evaluate --run {result.run.path.name}`, then export.")


@app.command()
def probe(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Name of a trained run.")],
    other_id: Annotated[
        str | None, typer.Argument(metavar="[RUN2]", help="Another run of the same log, to measure how far both agree.")
    ] = None,
    runs: Runs = RUNS,
) -> None:
    """Judge user embeddings beside simpler vectors: how well they predict labels, how good their segments are."""
    with command_console() as console:
        from training.evaluation.probe import probe_run as work

        console.run = run = Run.open(runs, run_id)
        other = Run.open(runs, other_id) if other_id else None
        result = work(run, other, progress=console.start_stage("probe"))
        console.end_stage()
        console.print(result.table())


app.add_typer(config_commands.commands)
app.add_typer(tune_commands.commands)
app.add_typer(segments.commands)
app.add_typer(segment_notes.commands, name="segments")
app.add_typer(diff.commands)
app.add_typer(offline.commands)
app.add_typer(traffic.commands)
app.add_typer(rules.commands, name="rules")
app.add_typer(privacy.commands)
app.add_typer(prune.commands)
app.add_typer(items.commands, name="items")


@contextmanager
def _kept_if_prepared(console: TrainConsole, run: Run, is_new: bool) -> Iterator[None]:
    """Delete a new numbered run whose log or settings cannot be used, so that a mistake leaves no empty run."""
    try:
        yield
    except (ConfigError, LogError):
        if is_new and "data" not in run.record():
            console.run = None
            shutil.rmtree(run.path)
        raise


def _exit_if_standing_by(repository: Path, number: int) -> None:
    from training.repository import stands_by

    if stands_by(repository, number):
        raise typer.Exit(STANDS_BY)


def _open_or_create(runs: Path, run_id: str | None, name: str) -> Run:
    if run_id and (runs / run_id / "run.json").is_file():
        return Run.open(runs, run_id)
    return Run.create(runs, name, run_id)


if __name__ == "__main__":
    main()
