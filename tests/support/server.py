"""The real server, started as its users start it: `segrec-serve` in a process of its own, on free ports.

`running_server` (session) serves a tiny release to all tests that only ask; `start_server` starts one of a test's own.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from segrec.v1.catalogue_service_pb2_grpc import CatalogueServiceStub
from segrec.v1.event_service_pb2_grpc import EventServiceStub
from segrec.v1.model_service_pb2_grpc import ModelServiceStub
from segrec.v1.segrec_service_pb2_grpc import SegrecServiceStub

from server.adapters.embedded_triton import launch
from tests.support.releases import CONFIDENCE, MIGRATION_OF_FOUR, tiny_release
from tests.support.waiting import wait_until

START_SECONDS = 60.0


def variables_of(code: Path | None) -> dict[str, str]:
    """The environment variables of a process that runs the code of a checkout; None is this one."""
    return dict(os.environ) if code is None else {**os.environ, "PYTHONPATH": f"{code / 'protos'}:{code}"}


class ServerProcess:
    """A `segrec-serve` whose output is followed line by line."""

    def __init__(
        self,
        directory: Path,
        triton_environment: Path,
        *flags: str,
        triton: str = "embedded",
        code: Path | None = None,
    ) -> None:
        """`code`: a checkout whose server to start instead of this one."""
        self.directory = directory
        self.repository = directory / "repository"
        self.lines: list[str] = []
        command = [
            *(sys.executable, launch.__file__, str(os.getpid()), sys.executable, "-c"),
            "from server.cli import main; main()",
            *("--address", "127.0.0.1:0", "--model-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"),
            *("--repository", str(self.repository), "--store", f"lmdb:{directory / 'history'}"),
            *("--triton", triton, "--triton-environment", str(triton_environment), "--poll-seconds", "0.05"),
            *flags,
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=directory, env=variables_of(code)
        )
        self._follower = threading.Thread(target=self._follow, daemon=True)
        self._follower.start()

    def _follow(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def has_said(self, text: str) -> bool:
        return any(text in line for line in list(self.lines))

    def wait_until_said(self, text: str, timeout: float = START_SECONDS) -> None:
        wait_until(lambda: self.has_said(text) or self.process.poll() is not None, timeout)
        assert self.has_said(text), f"the server ended without saying {text!r}:\n{self.output}"

    def _address(self, name: str) -> str:
        self.wait_until_said(f"{name} on ")
        [line] = [line for line in self.lines if line.startswith(f"{name} on ")]
        return line.split(" on ")[1]

    @property
    def address(self) -> str:
        return self._address("segrec")

    @property
    def model_address(self) -> str:
        return self._address("models")

    @property
    def metrics_address(self) -> str:
        return self._address("metrics")

    @property
    def triton_address(self) -> str:
        """Address of the embedded Triton."""
        self.wait_until_said("Triton answers on ")
        [line] = [line for line in self.lines if "Triton answers on " in line]
        return line.split("answers on ")[1].split()[0]

    def wait_until_serving(self) -> None:
        self.wait_until_said("serving")

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def end(self) -> None:
        """Whatever its state, it is gone afterwards."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._follower.join(timeout=10)
        if self.process.stdout is not None:
            self.process.stdout.close()


class Stubs:
    """Stubs of all services of a server, over channels that `close` closes."""

    def __init__(self, server: ServerProcess) -> None:
        self.channel = grpc.insecure_channel(server.address)
        self._model_channel = grpc.insecure_channel(server.model_address)
        self.segrec = SegrecServiceStub(self.channel)
        self.catalogue = CatalogueServiceStub(self.channel)
        self.events = EventServiceStub(self.channel)
        self.models = ModelServiceStub(self._model_channel)

    def close(self) -> None:
        self.channel.close()
        self._model_channel.close()


StartServer = Callable[..., ServerProcess]


@pytest.fixture
def start_server(triton_environment: Path, tmp_path: Path) -> Iterator[StartServer]:
    """Start servers in this test's directory, whose repository may be filled before; all end with the test."""
    started: list[ServerProcess] = []

    def start(*flags: str, triton: str = "embedded", directory: Path = tmp_path) -> ServerProcess:
        started.append(ServerProcess(directory, triton_environment, *flags, triton=triton))
        return started[-1]

    yield start
    for server in started:
        server.end()


@pytest.fixture(scope="session")
def running_server(triton_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with release 3 for the whole session. Use user ids of your own."""
    directory = tmp_path_factory.mktemp("server")
    tiny_release(directory / "repository", 3, confidence=CONFIDENCE, migration=MIGRATION_OF_FOUR)
    server = ServerProcess(directory, triton_environment)
    try:
        server.wait_until_serving()
        yield server
    finally:
        server.end()


@pytest.fixture
def stubs(running_server: ServerProcess) -> Iterator[Stubs]:
    found = Stubs(running_server)
    yield found
    found.close()
