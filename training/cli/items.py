"""The command `items add` of `segrec-train`."""

from pathlib import Path
from typing import Annotated

import typer

from training.cli.console import command_console
from training.cli.options import (
    REPOSITORY,
    By,
    ConfigFile,
    Force,
    ReleaseName,
    Repository,
    Sign,
    check_files,
    release_number,
)
from training.cli.push import push_of
from training.config import load_config

commands = typer.Typer(help="Items of a release.", no_args_is_help=True)


@commands.callback()
def items_group() -> None:
    """Items of a release."""


@commands.command("add")
def items_add(
    items: Annotated[Path, typer.Option("--items", help="Table of new items: id, title, category, description.")],
    release: ReleaseName = "newest",
    repository: Repository = REPOSITORY,
    vectors: Annotated[
        Path | None, typer.Option("--vectors", help="Parquet file of vectors, if the release was trained with one.")
    ] = None,
    config: ConfigFile = None,
    skip_known: Annotated[bool, typer.Option("--skip-known", help="Skip items that the release already has.")] = False,
    force: Force = None,
    by: By = None,
    sign: Sign = None,
) -> None:
    """Publish a release with new items, without training: their embeddings come from their texts."""
    with command_console() as console:
        from training.publish.add_items import add_items as work

        check_files(items, vectors)
        settings = load_config(config)
        result = work(
            repository,
            items,
            release=None if release == "newest" else release_number(release, repository),
            vectors=vectors,
            columns=settings.items,
            words=settings.columns.words,
            skip_known=skip_known,
            push=push_of(console, settings.publish, force, by, sign),
            progress=console.start_stage("items add"),
        )
        console.end_stage()
        console.print(
            f"Release {result.release} is in {repository}: release {result.source} with {result.added:,} new items, "
            f"{result.items:,} in all.",
            *result.notes,
            sep="\n",
        )
