"""One `tritonserver` process with its stubs: start, state, and stop."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from server.adapters.embedded_triton.environment import TritonEnvironment
from server.adapters.embedded_triton.private_socket import PrivateSocket

_LAUNCHER = Path(__file__).with_name("launch.py")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the Python backend allows no other place
_EXIT_SECONDS = 2
_LOG_TAIL_LINES = 15


class TritonProcess:
    """A running `tritonserver`, the leader of a process group with its stubs."""

    def __init__(self, process: asyncio.subprocess.Process, shared_memory_prefix: str) -> None:
        self._process = process
        self._shared_memory_prefix = shared_memory_prefix

    @classmethod
    async def start(
        cls, environment: TritonEnvironment, repository: Path, private_socket: PrivateSocket, log_path: Path
    ) -> "TritonProcess":
        """Start Triton on the socket without a loaded model; its output is appended to `log_path`.

        Its files and its shared memory, which holds histories, can be read by this user alone.
        Returns before Triton answers. Triton ends with this process, even when this process is killed. The kernel ties
        Triton to the calling thread, so call this from a thread that lives as long as the process.
        """
        prefix = f"segrec_triton_{os.getpid()}_{private_socket.name}_"
        remove_orphaned_shared_memory()
        command = [sys.executable, "-I", str(_LAUNCHER), str(os.getpid()), str(environment.server)]
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                *_server_flags(environment, repository, private_socket.host, prefix),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment.variables(),
                start_new_session=True,
            )
        return cls(process, prefix)

    @property
    def pid(self) -> int:
        """Process id of `tritonserver`."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code of `tritonserver`; None while it runs, negative for the signal that ended it."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for the end of `tritonserver`; returns the exit code."""
        return await self._process.wait()

    def stubs(self) -> list[psutil.Process]:
        """The running stub processes: one per model instance of each loaded version."""
        return [process for process in _group_members(self.pid) if process.pid != self.pid]

    def kill(self) -> None:
        """Kill `tritonserver` without waiting; the stubs remain until `stop`."""
        if self.exit_code is None:
            self._process.kill()

    async def stop(self) -> None:
        """Stop Triton and its stubs: SIGTERM first, SIGKILL after a few seconds. Returns when all have ended."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), _EXIT_SECONDS + 2)
            except TimeoutError:
                self._process.kill()
        await self._process.wait()
        await asyncio.to_thread(self._kill_leftovers)

    def _kill_leftovers(self) -> None:
        """Kill stubs that outlived Triton, and remove their shared memory."""
        remaining = list(_group_members(self.pid))
        for process in remaining:
            process.kill()
        psutil.wait_procs(remaining, timeout=_EXIT_SECONDS)
        for region in _SHARED_MEMORY.glob(f"{self._shared_memory_prefix}*"):
            region.unlink(missing_ok=True)


def log_tail(path: Path, start: int = 0) -> str:
    """The last lines of a log after byte `start`, without Triton's tables."""
    with path.open("rb") as log:
        log.seek(start)
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join([line for line in lines if line.strip() and line[0] not in "|+"][-_LOG_TAIL_LINES:])


def remove_orphaned_shared_memory() -> None:
    """Remove the shared memory of Tritons whose parent process was killed."""
    for region in _SHARED_MEMORY.glob("segrec_triton_*"):
        owner = region.name.split("_")[2]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            region.unlink(missing_ok=True)


def _server_flags(environment: TritonEnvironment, repository: Path, host: str, prefix: str) -> list[str]:
    return [
        f"--model-repository={repository}",
        f"--backend-directory={environment.backends}",
        "--model-control-mode=explicit",
        "--strict-readiness=false",  # else one damaged version makes the whole server unready
        "--disable-auto-complete-config",
        f"--grpc-address={host}",
        "--grpc-port=1",
        "--allow-http=false",
        "--allow-metrics=false",
        "--pinned-memory-pool-byte-size=0",
        f"--exit-timeout-secs={_EXIT_SECONDS}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
    ]


def _group_members(group: int) -> Iterator[psutil.Process]:
    """The running processes of a process group."""
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
