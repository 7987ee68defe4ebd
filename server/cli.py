"""The command `segrec-serve`: runs the server until a signal stops it."""

import argparse
import asyncio
import ctypes
import gc
import os
import signal
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import uvloop
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress
from segrec.visible import visible

from server import logs
from server.config_command import config_command
from server.core.errors import SegrecError
from server.settings import Settings, load_settings

EXIT_SETUP = 1
EXIT_USAGE = 2

SWITCH_SECONDS = 0.0005
"""A thread of a stream's chunk lets the event loop go on after this time; Python's own default is ten times as long."""

_M_ARENA_MAX = -8  # of malloc.h

THREAD_COUNT_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "POLARS_MAX_THREADS")
"""Environment variables that the libraries read at import; each is set to 1. The server's arrays are small and its
cores are busy with other requests: threads of a pool that wait for each other took half of the processor time."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Prints one sentence and exits with 2 for a wrong setting, with 1 when the server cannot start."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["token"]:
        _token(arguments[1:])
        return
    if arguments[:1] == ["config"]:
        config_command(arguments[1:])
        return
    try:
        settings = _settings(arguments)
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(map(str, problem["loc"])) or "settings"
            print(visible(f"error: {name}: {problem['msg']}"), file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None
    except (OSError, tomllib.TOMLDecodeError) as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None
    for name in THREAD_COUNT_VARIABLES:
        os.environ.setdefault(name, "1")
    sys.setswitchinterval(SWITCH_SECONDS)
    _share_memory_among_threads()
    logs.configure(settings.log_format, access=settings.access_log)
    try:
        uvloop.run(_serve(settings))
    except SegrecError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        raise SystemExit(EXIT_SETUP) from None


def _share_memory_among_threads() -> None:
    """Have glibc's malloc use one pool of memory: what threads free in turns adds up in pools of their own."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has it
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def _token(arguments: Sequence[str]) -> None:
    from server.access.new_token import token_command

    try:
        token_command(arguments)
    except SegrecError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        raise SystemExit(EXIT_SETUP) from None


def _settings(arguments: Sequence[str]) -> Settings:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, default=None)
    known, rest = parser.parse_known_args(list(arguments))
    return load_settings(rest, known.config)


async def _serve(settings: Settings) -> None:
    from server.assembly import running
    from server.parts import log_failure

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _stop_or_end, stop, number)
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("loading histories", total=None, visible=False)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, visible=True)

        async with running(settings, on_progress=show) as server:
            progress.stop()
            for name, address, port in (
                ("segrec", settings.address, server.port),
                ("models", settings.model_address, server.model_port),
                ("metrics", settings.metrics_address, server.metrics_port),
            ):
                print(f"{name} on {address.rpartition(':')[0]}:{port}", flush=True)
            announcer = asyncio.create_task(_announce(server.serving))
            announcer.add_done_callback(log_failure)
            await stop.wait()
            announcer.cancel()
            print("draining", flush=True)
    print("stopped", flush=True)


def _stop_or_end(stop: asyncio.Event, number: int) -> None:
    """Stop in order at the first signal; end at once at the second. The embedded Triton ends with this process."""
    if stop.is_set():
        print("a second signal: ended at once, without waiting for accepted calls", flush=True)
        os._exit(128 + number)
    stop.set()


async def _announce(serving: asyncio.Event) -> None:
    if not serving.is_set():
        print("waiting for a release", flush=True)
    await serving.wait()
    _freeze_garbage_collector()
    print("serving", flush=True)


def _freeze_garbage_collector() -> None:
    """Exclude the existing objects from garbage collections, which would otherwise stop every call for 50 to 80 ms."""
    gc.collect()
    gc.freeze()
