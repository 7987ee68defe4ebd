"""The commands of `segrec-train` about segments that are there already; `training.cli` takes them in."""

import typer

commands = typer.Typer()
