"""Triton's processes: they end with their parent, and nobody else may have them load a model."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from server.adapters.embedded_triton import EmbeddedTriton
from server.adapters.embedded_triton.private_socket import PrivateSocket
from server.adapters.triton import TritonEncoder
from server.core.errors import SetupError
from tests.support.triton import ROOT, ModelRepository, RunningTriton
from tests.support.waiting import wait_until

SECONDS = 10.0


async def test_stop_leaves_no_process_and_no_shared_memory(
    triton_environment: Path, model_repository: ModelRepository, tmp_path: Path
) -> None:
    triton = EmbeddedTriton(model_repository.path, triton_environment, log_path=tmp_path / "log")
    await triton.start()
    model_repository.add_tiny(1)
    encoder = TritonEncoder(triton.address, model_repository.config_path)
    await encoder.load([1])
    pids, socket_path = [*triton.stub_pids(), triton.pid or 0], Path(triton.address.removeprefix("unix:"))
    assert len(pids) == 3
    await encoder.close()
    await triton.stop()
    await triton.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert triton.pid is None
    assert not socket_path.parent.exists()
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(f"segrec_triton_{os.getpid()}_")]


def test_triton_ends_when_its_parent_is_killed_under_load(
    triton_environment: Path, model_repository: ModelRepository
) -> None:
    code = (
        "import asyncio, pathlib, sys\n"
        "from server.adapters.embedded_triton import EmbeddedTriton\n"
        "from server.adapters.triton import TritonEncoder\n"
        "from tests.support.onnx_models import random_inputs\n"
        "async def main():\n"
        "    repository = pathlib.Path(sys.argv[1])\n"
        "    triton = EmbeddedTriton(repository, pathlib.Path(sys.argv[2]), log_path=repository / 'log')\n"
        "    await triton.start()\n"
        "    encoder = TritonEncoder(triton.address, repository / 'user_encoder/config.pbtxt')\n"
        "    await encoder.load([1])\n"
        "    print(triton.pid, *triton.stub_pids(), flush=True)\n"
        "    while True:\n"
        "        await asyncio.gather(*(encoder.encode(1, random_inputs(16, 50), 5) for _ in range(8)))\n"
        "asyncio.run(main())\n"
    )
    model_repository.add_tiny(1)
    command = [sys.executable, "-c", code, str(model_repository.path), str(triton_environment)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        parent.kill()
    wait_until(lambda: not any(_is_running(pid) for pid in pids))


INTRUDER = """
import os
import sys
import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
model = service_pb2.RepositoryModelLoadRequest(model_name="evil")
model.parameters["config"].string_param = '{"backend": "python", "max_batch_size": 0}'
model.parameters["file:1/model.py"].bytes_param = b"raise SystemExit"
triton = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
if sys.argv[2] == "nobody":  # after the imports: another user may not read the project's folder
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    triton.RepositoryModelLoad(model, timeout=5)
except grpc.RpcError as error:
    print(error.code().name, error.details())
"""


async def test_only_its_own_user_can_have_triton_load_a_model(embedded_triton: EmbeddedTriton) -> None:
    """A model is code that runs as Triton's user: no port is open, and the socket's directory is closed to others."""
    family = [psutil.Process(embedded_triton.pid), *map(psutil.Process, embedded_triton.stub_pids())]
    assert not [process for process in family if process.net_connections("inet")]
    directory = Path(embedded_triton.address.removeprefix("unix:")).parent
    assert (directory.stat().st_uid, stat.S_IMODE(directory.stat().st_mode)) == (os.geteuid(), 0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_have_triton_load_a_model(running_triton: RunningTriton) -> None:
    def load_as(user: str) -> str:
        command = [sys.executable, "-c", INTRUDER, running_triton.address, user]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "SystemExit" in load_as("root")  # the code ran
    theirs = load_as("nobody")
    assert "UNAVAILABLE" in theirs
    assert "Permission denied" in theirs


def test_the_socket_of_a_killed_process_is_removed_and_that_of_a_living_one_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = Path(tempfile.mkdtemp(prefix="sockets-"))  # pytest's own has too long a path for a socket
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    living, killed = PrivateSocket(), PrivateSocket()
    os.close(killed._lock)
    third = PrivateSocket()
    names = {path.name.removeprefix("segrec-triton-") for path in directory.iterdir()}
    assert names == {living.name, third.name}
    for private_socket in (living, third):
        private_socket.remove()
    directory.rmdir()


async def test_a_triton_that_cannot_start_shows_its_log(
    triton_environment: Path, model_repository: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "server.adapters.embedded_triton.process._server_flags", lambda *_: ["--model-repository=/nowhere"]
    )
    triton = EmbeddedTriton(model_repository.path, triton_environment, log_path=tmp_path / "log")
    with pytest.raises(SetupError, match=r"(?s)ended during its start with exit code \d+.*log.*nowhere"):
        await triton.start()
    assert triton.pid is None


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
