"""The command `config` of `segrec-train`: a file of settings to start from, and the reference of all settings."""

from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def config(
    reference: Annotated[
        bool, typer.Option("--reference", help="Print what each key means and when to change it, as Markdown.")
    ] = False,
) -> None:
    """Print a TOML file of all settings with their defaults, for --config."""
    from training.config.reference import reference_page, starting_file

    typer.echo(reference_page() if reference else starting_file(), nl=False)
