"""Work on a file that may be hostile, done in a process of its own with little memory, little time and no files.

What comes back are arrays, read without pickle.
"""

import io
import multiprocessing
import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import PublishError

Arrays = Mapping[str, NDArray[np.generic]]

_OK, _FAILED = b"+", b"-"
_GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What the process may take: address space in bytes, and seconds, of the clock and of each processor's time."""

    memory_bytes: int
    seconds: float


def confined(limits: SandboxLimits, work: Callable[..., Arrays], *arguments: Any) -> dict[str, NDArray[np.generic]]:
    """What `work` returns for the arguments, in a process of its own. `work` and arguments must be picklable.

    Raises PublishError with what `work` raised, or that it went past a limit.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, limits, work, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        answer = _received(receiver, limits.seconds)
    finally:
        receiver.close()
        process.kill()
        process.join()
    if answer is None:
        raise PublishError(f"it took more than {limits.seconds:g} s, or more memory than it may, and was ended")
    if answer[:1] == _FAILED:
        raise PublishError(answer[1:].decode(errors="replace"))
    with np.load(io.BytesIO(answer[1:]), allow_pickle=False) as arrays:
        return dict(arrays)


def _received(receiver: Connection, seconds: float) -> bytes | None:
    """The answer; None where there is none in time, or where the process ended without one."""
    try:
        return receiver.recv_bytes() if receiver.poll(seconds + _GRACE_SECONDS) else None
    except EOFError:
        return None


def _work(sender: Connection, limits: SandboxLimits, work: Callable[..., Arrays], arguments: tuple[Any, ...]) -> None:
    confine(limits)
    try:
        made = io.BytesIO()
        arrays: dict[str, Any] = dict(work(*arguments))
        np.savez(made, **arrays)
        answer = _OK + made.getvalue()
    except MemoryError:
        answer = _FAILED + b"it takes more memory than it may"
    except Exception as error:  # ONNX and its runtime raise classes of their own, without a common base
        answer = _FAILED + (str(error).splitlines() or [type(error).__name__])[0].encode()
    sender.send_bytes(answer)
    sender.close()


def confine(limits: SandboxLimits) -> None:
    """Limit this process: memory, processor time, and no byte written to any file."""
    seconds = int(limits.seconds * len(os.sched_getaffinity(0))) + 1
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
