"""`segrec-triton`: install the embedded Triton, or run it without the server."""

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer
from segrec.visible import visible

from server.adapters.embedded_triton.environment import DEFAULT_PATH, install_environment
from server.adapters.embedded_triton.supervisor import EmbeddedTriton
from server.core.errors import SetupError

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
EnvironmentPath = Annotated[Path, typer.Option("--path", help="Directory of the Python environment of Triton.")]


@app.command()
def install(path: EnvironmentPath = DEFAULT_PATH) -> None:
    """Install Triton into its own Python environment. Does nothing if it is installed already."""
    environment = install_environment(path, report=typer.echo)
    typer.echo(f"Triton is installed in {environment.path}")


@app.command()
def run(
    repository: Annotated[Path, typer.Option(help="Model repository: the directory that contains user_encoder.")],
    path: EnvironmentPath = DEFAULT_PATH,
    log: Annotated[Path, typer.Option(help="File to which Triton appends its log.")] = Path("triton.log"),
) -> None:
    """Run Triton in the foreground until Ctrl-C, for `segrec-serve --triton ADDRESS` of the same user."""
    asyncio.run(_run(EmbeddedTriton(repository, path, log_path=log)))


async def _run(triton: EmbeddedTriton) -> None:
    stopped = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopped.set)
    await triton.start()
    typer.echo(f"Triton answers on {triton.address}; Ctrl-C stops it")
    try:
        await stopped.wait()
    finally:
        await triton.stop()


def main() -> None:
    """Entry point; a `SetupError` becomes one sentence and exit code 1."""
    try:
        app()
    except SetupError as error:
        typer.echo(visible(f"error: {error}"), err=True)
        raise SystemExit(1) from None
