"""A real redis-server (Debian's package of that name) on a free port, for the tests of the Valkey store."""

import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.waiting import wait_until

STARTS_MAX = 5


class RedisServer:
    """A server that keeps its files in `directory`. `settings` are flags such as `--appendonly yes`.

    With `tls`, flags such as `--tls-cert-file`, the port speaks TLS only.
    """

    def __init__(self, directory: Path, *settings: str, tls: Sequence[str] = ()) -> None:
        binary = shutil.which("redis-server") or shutil.which("valkey-server")
        assert binary, "redis-server is missing: install it, for instance with `apt-get install redis-server`"
        self._command = [binary, "--bind", "127.0.0.1", "--save", "", "--dir", str(directory), *settings, *tls]
        self._port_flags = ["--port", "0", "--tls-port"] if tls else ["--port"]
        self._scheme = "rediss" if tls else "redis"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start on a free port, the same as before if there was one, and wait until it answers."""
        for _ in range(STARTS_MAX):
            self.port = self.port or free_port()
            command = [*self._command, *self._port_flags, str(self.port)]
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            wait_until(lambda: self._ended() or self._answers())
            if not self._ended():
                return
            self.port = 0  # somebody was quicker
        pytest.fail(f"redis-server did not start in {STARTS_MAX} tries: {' '.join(self._command)}")

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def _answers(self) -> bool:
        if self._scheme == "redis":
            return _answers_ping(self.port)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def pause(self) -> None:
        """Let it hang: it takes connections, and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _answers_ping(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False
