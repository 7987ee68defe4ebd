"""The commands of `segrec-train rules`: what people say about items, tried, put in force and taken back."""

from pathlib import Path
from typing import Annotated

import typer

from training.cli.console import command_console
from training.cli.options import REPOSITORY, RUNS, By, Repository, Runs
from training.cli.traffic import check_repository

commands = typer.Typer(
    help="Boost, bury, pin, replace, ban and cap items; each change is a version. Running servers follow within a "
    "second, and answers name the rules that have moved an item.",
    no_args_is_help=True,
)

RulesFile = Annotated[Path, typer.Argument(metavar="FILE", help="TOML file of rules; docs/RULES.md has the form.")]
Reason = Annotated[str, typer.Option("--reason", help="The reason, noted in the audit.")]


@commands.command()
def show(
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="A version; default: the one in force.")
    ] = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Show the rules in force, or those of an earlier version."""
    with command_console() as console:
        from server.core.repository.rules import newest_version, read_version
        from training.publish.rules import rules_table, unknown_names, version_sentence

        check_repository(repository)
        found = newest_version(repository) if version is None else read_version(repository, version)
        if found is None:
            console.print("There are no rules.")
            return
        console.print(version_sentence(found), rules_table(found.rules), *unknown_names(repository, found.rules))


@commands.command()
def history(repository: Repository = REPOSITORY) -> None:
    """Show all versions of the rules: when, who, why, and how many rules."""
    with command_console() as console:
        from server.core.repository.rules import read_version, versions
        from training.publish.rules import version_sentence

        check_repository(repository)
        numbers = versions(repository)
        for number in numbers:
            console.print(version_sentence(read_version(repository, number)))
        if not numbers:
            console.print("There are no rules.")


@commands.command()
def put(file: RulesFile, reason: Reason = "", by: By = None, repository: Repository = REPOSITORY) -> None:
    """Put the rules of a file in force, in place of all rules before."""
    with command_console() as console:
        from segrec.traffic import user_at_host

        from server.core.repository.rules import put_version, read_rules_file, versions
        from training.publish.rules import unknown_names, version_sentence

        check_repository(repository)
        rules = read_rules_file(file)
        newest = (versions(repository) or [0])[-1]
        made = put_version(repository, rules, by or user_at_host(), reason, newest)
        console.print(version_sentence(made), *unknown_names(repository, rules))


@commands.command()
def restore(
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The version to put in force again.")],
    reason: Reason = "",
    by: By = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Put the rules of an earlier version in force again, as a new version."""
    with command_console() as console:
        from segrec.traffic import user_at_host

        from server.core.repository.rules import put_version, read_version, versions
        from training.publish.rules import version_sentence

        check_repository(repository)
        rules = read_version(repository, version).rules
        made = put_version(repository, rules, by or user_at_host(), reason, versions(repository)[-1])
        console.print(version_sentence(made))


@commands.command()
def preview(
    file: RulesFile,
    run_id: Annotated[str, typer.Option("--run", help="Name of the run whose users are asked for.")],
    top_k: Annotated[int, typer.Option("--top-k", min=1, max=500, help="Items for each user.")] = 10,
    out: Annotated[
        Path | None, typer.Option("--out", help="Parquet file of the lists that change: user_id, before, after.")
    ] = None,
    runs: Runs = RUNS,
    repository: Repository = REPOSITORY,
) -> None:
    """Say whose lists would change if the rules of a file took the place of those in force. Changes nothing."""
    with command_console() as console:
        from server.core.repository.rules import newest_version, read_rules_file
        from server.core.rules import Rules
        from training.offline.parts_file import check_parquet, write_parts
        from training.offline.rules_preview import previewed
        from training.runs import Run

        if out is not None:
            check_parquet(out)
        check_repository(repository)
        rules, newest = read_rules_file(file), newest_version(repository)
        console.run = run = Run.open(runs, run_id)
        result = previewed(run, newest.rules if newest else Rules(), rules, top_k, console.start_stage("preview"))
        console.run = None
        console.end_stage()
        console.print(result.sentence(), result.table())
        if out is not None:
            write_parts([result.changed], out)
            console.print(f"The lists that change are in {out}.")
