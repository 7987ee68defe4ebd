"""A process of its own for work on untrusted files: limited memory and time, no written files.

Results come back as arrays, read without pickle.
"""

import io
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import PublishError

Arrays = Mapping[str, NDArray[np.generic]]

_OK, _FAILED = b"+", b"-"
_GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Limits of the process: address space in bytes, and seconds of wall time and of time on each processor."""

    memory_bytes: int
    seconds: float


def run_in_sandbox(
    limits: SandboxLimits, work: Callable[..., Arrays], *arguments: Any
) -> dict[str, NDArray[np.generic]]:
    """The arrays of `work(*arguments)`, computed in the sandbox. `work` and its arguments must be picklable.

    Raises PublishError with the error of `work`, or when `work` exceeds a limit.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, limits, work, arguments), daemon=True)
    with _without_main():
        process.start()
    sender.close()
    try:
        answer = _received(receiver, limits.seconds)
    finally:
        receiver.close()
        process.kill()
        process.join()
    if answer is None:
        raise PublishError(f"it was ended, since it took more than {limits.seconds:g} s or too much memory")
    if answer[:1] == _FAILED:
        raise PublishError(answer[1:].decode(errors="replace"))
    with np.load(io.BytesIO(answer[1:]), allow_pickle=False) as arrays:
        return dict(arrays)


@contextmanager
def _without_main() -> Iterator[None]:
    """A process that starts meanwhile does not run the caller's script, which `multiprocessing` would let it run."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _received(receiver: Connection, seconds: float) -> bytes | None:
    """The answer; None when the time is up or the process ended without an answer."""
    try:
        return receiver.recv_bytes() if receiver.poll(seconds + _GRACE_SECONDS) else None
    except EOFError:
        return None


def _work(sender: Connection, limits: SandboxLimits, work: Callable[..., Arrays], arguments: tuple[Any, ...]) -> None:
    limit_process(limits)
    try:
        buffer = io.BytesIO()
        arrays: dict[str, Any] = dict(work(*arguments))
        np.savez(buffer, **arrays)
        answer = _OK + buffer.getvalue()
    except MemoryError:
        answer = _FAILED + b"it takes too much memory"
    except Exception as error:  # ONNX and its runtime raise classes of their own, without a common base
        answer = _FAILED + (str(error).splitlines() or [type(error).__name__])[0].encode()
    sender.send_bytes(answer)
    sender.close()


def limit_process(limits: SandboxLimits) -> None:
    """Limit the memory and processor time of this process, and forbid it to write to files."""
    seconds = int(limits.seconds * len(os.sched_getaffinity(0))) + 1
    for kind, limit in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
