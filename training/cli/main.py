"""`segrec-train`: all stages at once, or one by one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.cli import diff, segments, traffic
from training.cli.console import TrainConsole, telling
from training.cli.options import (
    REPOSITORY,
    RUNS,
    By,
    ConfigFile,
    Events,
    Force,
    Items,
    K,
    MaxMinutes,
    NewRunId,
    ReleaseName,
    Repository,
    RunId,
    Runs,
    Seed,
    Sign,
    Users,
    check_files,
    k_of,
    release_number,
    signing_key,
)
from training.config import PublishSettings, load_config
from training.errors import ConfigError
from training.fit.processes import Processes
from training.runs import Run

if TYPE_CHECKING:
    from training.publish.publish import Push

app = typer.Typer(
    help="Train Segrec on a behaviour log: user segments and recommendations, published as a release.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point."""
    app()


@app.command()
def run(
    events: Annotated[Path | None, typer.Option("--events", help="The log: CSV, Parquet or NDJSON.")] = None,
    items: Items = None,
    users: Users = None,
    config: ConfigFile = None,
    demo: Annotated[bool, typer.Option("--demo", help="Take a year of grocery purchases instead of a log.")] = False,
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
    """Do all stages, from the log to a published release. A run that is there goes on where it stopped."""
    with telling() as told:
        if (events is None) != demo:
            raise ConfigError("Give either a log by --events FILE, or --demo.")
        from training.cli.summary import summary
        from training.data import demo as demo_log
        from training.pipeline import RunInputs, run_all, with_overrides

        settings = load_config(config) if config or not demo else demo_log.CONFIG
        settings = with_overrides(settings, k=k_of(k), max_minutes=max_minutes, seed=seed)
        if events is None:
            log = demo_log.write_demo(runs / ".demo")
            events, items, users = log.events, log.items, log.users
        check_files(events, items, users, settings.text.vectors)
        push = _push(told, settings.publish, force, by, sign)
        told.run = opened = _opened_or_new(runs, run_id, "demo" if demo else "run")
        order = RunInputs(events, items, users, settings, repository)
        told.resume = f"segrec-train run … --run {opened.path.name}"
        done = run_all(opened, order, push, told.progress_of)
        if not done:
            told.console.print(f"Run {opened.path.name} is done already.")
        told.finish()
        told.console.print(summary(opened, repository))


@app.command()
def prepare(
    events: Events,
    items: Items = None,
    users: Users = None,
    config: ConfigFile = None,
    runs: Runs = RUNS,
    run_id: NewRunId = None,
) -> None:
    """Read and clean a log; makes a run."""
    with telling() as told:
        from training.data.prepare import prepare as work

        settings = load_config(config)
        check_files(events, items, users, settings.text.vectors)
        told.run = opened = _opened_or_new(runs, run_id, "run")
        result = work(opened, events, items, users, settings, progress=told.progress_of("prepare"))
        told.finish()
        told.console.print(result.account.table())
        told.console.print(f"Prepared {opened.path}; go on with `segrec-train train --run {opened.path.name}`.")


@app.command()
def train(run_id: RunId, runs: Runs = RUNS, max_minutes: MaxMinutes = None, resume: bool = False) -> None:
    """Train the encoder on what `prepare` left.

    On several processes or machines: torchrun --nproc-per-node 2 -m -- training.cli.main train --run RUN.
    """
    with telling(Processes.from_environment()) as told:
        from training.fit.train import train as work
        from training.pipeline import with_overrides

        told.run = opened = Run.open(runs, run_id)
        told.resume = f"segrec-train train --run {run_id} --resume"
        settings = with_overrides(opened.config(), k=None, max_minutes=max_minutes, seed=None).train
        work(opened, settings=settings, resume=resume, progress=told.progress_of("train"))


@app.command()
def evaluate(run_id: RunId, runs: Runs = RUNS) -> None:
    """Measure the encoder on events held back from training."""
    with telling() as told:
        from training.evaluation.evaluate import evaluate as work

        told.run = opened = Run.open(runs, run_id)
        result = work(opened, progress=told.progress_of("evaluate"))
        told.finish()
        told.console.print(*result.tables(), *result.notes, sep="\n")


@app.command()
def compare(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN RUN …", help="Evaluated runs on the same data.")],
    runs: Runs = RUNS,
) -> None:
    """Show runs side by side, and whether their differences are chance."""
    with telling() as told:
        from training.evaluation.compare import compare_runs as work
        from training.evaluation.compare import comparison_table

        told.console.print(comparison_table(work([Run.open(runs, name) for name in run_ids])))


@app.command()
def export(run_id: RunId, runs: Runs = RUNS) -> None:
    """Write the encoder as ONNX, and check it."""
    with telling() as told:
        from training.model.export import export as work

        told.run = opened = Run.open(runs, run_id)
        work(opened, progress=told.progress_of("export"))


@app.command()
def segment(run_id: RunId, runs: Runs = RUNS, repository: Repository = REPOSITORY, k: K = None) -> None:
    """Cluster users; segment ids go on from the newest release in the repository."""
    with telling() as told:
        from training.cli.summary import segments_summary
        from training.segments.segment import segment as work
        from training.segments.sweep import read_sweep

        told.run = opened = Run.open(runs, run_id)
        asked = k_of(k) or opened.config().segment.k
        work(opened, repository, asked, progress=told.progress_of("segment"))
        told.finish()
        if asked == "auto" and (swept := read_sweep(opened)):
            told.console.print(swept.table())
        told.console.print(segments_summary(opened))


@app.command()
def publish(
    run_id: RunId,
    runs: Runs = RUNS,
    repository: Repository = REPOSITORY,
    max_loss: Annotated[
        float | None,
        typer.Option("--max-loss", min=0, max=1, help="Share of the active NDCG@10 that may be lost."),
    ] = None,
    force: Force = None,
    by: By = None,
    sign: Sign = None,
) -> None:
    """Put the run's release into the model repository, once it has passed all gates."""
    with telling() as told:
        from training.cli.summary import serving_hint
        from training.cli.traffic_tables import after_publishing
        from training.publish.publish import publish as work

        told.run = opened = Run.open(runs, run_id)
        settings = opened.config().publish
        if max_loss is not None:
            settings = settings.model_copy(update={"max_loss": max_loss})
        push = _push(told, settings, force, by, sign)
        number = work(opened, repository, push, told.progress_of("publish"))
        told.finish()
        told.console.print(after_publishing(repository, number), serving_hint(opened, repository, number), sep="\n")


@app.command()
def compress(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run, trained and exported.")],
    runs: Runs = RUNS,
    only: Annotated[str | None, typer.Option("--only", help="Some of int8,fp16,pruned,student.")] = None,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", min=0.001, help="For each training; left out: the run's own time.")
    ] = None,
) -> None:
    """Make smaller or faster runs of a run, and show what each gains and loses."""
    with telling() as told:
        from training.derive.compress import WAYS
        from training.derive.compress import compress as work

        told.run = opened = Run.open(runs, run_id)
        ways = tuple(only.split(",")) if only is not None else WAYS
        result = work(opened, ways, max_minutes, progress=told.progress_of("compress"))
        told.finish()
        told.console.print(result.table())
        told.console.print("Each is a run: `segrec-train segment --run …`, then `segrec-train publish --run …`.")


@app.command()
def fuse(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN RUN …", help="Runs trained on the same prepared data.")],
    runs: Runs = RUNS,
) -> None:
    """Make one run of several: their scores averaged, their embeddings side by side."""
    with telling() as told:
        from training.derive.fuse import fuse as work

        told.run = Run.open(runs, run_ids[0])
        result = work([Run.open(runs, name) for name in run_ids], progress=told.progress_of("train"))
        told.run = result.run
        told.finish()
        told.console.print(result.table())
        told.console.print(f"Fused; go on with `segrec-train evaluate --run {result.run.path.name}`, then export.")


@app.command()
def probe(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run, trained.")],
    other_id: Annotated[
        str | None, typer.Argument(metavar="[RUN2]", help="Another run of the same log: how far do the two agree?")
    ] = None,
    runs: Runs = RUNS,
) -> None:
    """Judge user embeddings: what they tell of labels, and what segments they make, beside simpler vectors."""
    with telling() as told:
        from training.evaluation.probe import probe_run as work

        told.run = opened = Run.open(runs, run_id)
        other = Run.open(runs, other_id) if other_id else None
        result = work(opened, other, progress=told.progress_of("probe"))
        told.finish()
        told.console.print(result.table())


app.add_typer(segments.commands)
app.add_typer(diff.commands)
app.add_typer(traffic.commands)
items_app = typer.Typer(help="Items of a release.", no_args_is_help=True)
app.add_typer(items_app, name="items")


@items_app.callback()
def items_group() -> None:
    """Items of a release."""


@items_app.command("add")
def items_add(
    items: Annotated[Path, typer.Option("--items", help="Table of new items: id, title, category, description.")],
    release: ReleaseName = "newest",
    repository: Repository = REPOSITORY,
    vectors: Annotated[Path | None, typer.Option("--vectors", help="Parquet, where training had one.")] = None,
    config: ConfigFile = None,
    skip_known: Annotated[bool, typer.Option("--skip-known", help="Leave out items that it has already.")] = False,
    force: Force = None,
    by: By = None,
    sign: Sign = None,
) -> None:
    """Publish a release with new items, placed by their texts, without training."""
    with telling() as told:
        from training.publish.add_items import add_items as work

        check_files(items, vectors)
        settings = load_config(config)
        result = work(
            repository,
            items,
            release=None if release == "newest" else release_number(release, repository),
            vectors=vectors,
            columns=settings.items,
            skip_known=skip_known,
            push=_push(told, settings.publish, force, by, sign),
            progress=told.progress_of("items add"),
        )
        told.finish()
        told.console.print(
            f"Release {result.release} is in {repository}: release {result.source} with {result.added:,} new items, "
            f"{result.items:,} in all."
        )


def _push(
    told: TrainConsole, settings: PublishSettings, force: str | None, by: str | None, sign: Path | None
) -> "Push":
    """How a release is put in; the table of its gates is shown. Raises ConfigError."""
    from segrec.traffic import user_at_host

    from training.publish.gates import gates_table
    from training.publish.publish import Push

    if force is not None and not force.strip():
        raise ConfigError("--force needs a reason, which the audit keeps.")
    return Push(
        who=by or user_at_host(),
        settings=settings,
        forced=force,
        key=signing_key(sign),
        tell=lambda gates: told.console.print(gates_table(gates, force is not None)),
    )


def _opened_or_new(runs: Path, run_id: str | None, name: str) -> Run:
    there = run_id and (runs / run_id / "run.json").is_file()
    return Run.open(runs, run_id) if there and run_id else Run.create(runs, name, run_id)


if __name__ == "__main__":
    main()
