"""A Triton that runs by itself is asked by TLS and with a secret, as NVIDIA's container is in production."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.adapters.embedded_triton import check_environment, launch
from server.adapters.triton import TritonEncoder
from server.adapters.triton_access import RESTRICTED_PROTOCOLS, TritonAccess, TritonSecret, TritonTls
from server.core.errors import EncoderUnavailable, SetupError
from tests.support.certificates import Authority, Pair
from tests.support.onnx_models import random_inputs
from tests.support.triton import ModelRepository
from tests.support.waiting import wait_until_async

SECRET = "correct-horse"


@dataclass(frozen=True)
class Guarded:
    """A Triton that wants the secret, and a client certificate of `authority`."""

    address: str
    authority: Authority
    client: Pair

    def tls(self, client: Pair | None) -> TritonTls:
        pair = (client.certificate, client.key) if client else (None, None)
        return TritonTls(self.authority.root, *pair)


@pytest.fixture
def guarded(triton_environment: Path, model_repository: ModelRepository, tmp_path: Path) -> Iterator[Guarded]:
    authority = Authority(tmp_path)
    server, client = authority.issue("localhost"), authority.issue("client")
    environment = check_environment(triton_environment)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model_repository.add_tiny(1)
    command = [
        *(sys.executable, "-I", launch.__file__, str(os.getpid()), str(environment.server)),
        f"--model-repository={model_repository.path}",
        f"--backend-directory={environment.backends}",
        *("--model-control-mode=explicit", "--strict-readiness=false", "--disable-auto-complete-config"),
        *("--allow-http=false", "--allow-metrics=false", "--exit-timeout-secs=2"),
        *("--grpc-address=127.0.0.1", f"--grpc-port={port}", "--grpc-use-ssl-mutual=true"),
        f"--grpc-server-cert={server.certificate}",
        f"--grpc-server-key={server.key}",
        f"--grpc-root-cert={authority.root}",
        f"--grpc-restricted-protocol={RESTRICTED_PROTOCOLS}:segrec={SECRET}",
    ]
    with (tmp_path / "triton.log").open("w") as log:
        process = subprocess.Popen(command, env=environment.variables(), stdout=log, stderr=log)
    yield Guarded(f"localhost:{port}", authority, client)
    process.terminate()
    process.wait(timeout=30)


async def test_triton_is_asked_by_mutual_tls_and_with_a_secret_that_may_change(
    guarded: Guarded, model_repository: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.watched_files.CHECK_SECONDS", 0.0)
    secret_file = tmp_path / "secret"
    secret_file.write_text(f"{SECRET}\n")
    access = TritonAccess(guarded.tls(guarded.client), TritonSecret(secret_file))
    encoder = TritonEncoder(guarded.address, model_repository.config_path, access)

    async def loaded() -> bool:
        try:
            await encoder.load([1])
        except EncoderUnavailable:  # it is still starting
            return False
        return True

    await wait_until_async(loaded)
    assert (await encoder.encode(1, random_inputs(2, 4), 10.0)).shape[0] == 2
    secret_file.write_text("staple")
    with pytest.raises(EncoderUnavailable, match="restricted"):
        await encoder.encode(1, random_inputs(2, 4), 10.0)
    with pytest.raises(EncoderUnavailable, match="set triton_secret_file to a file with Triton's secret"):
        await encoder.load([1])
    secret_file.unlink()
    secret_file.write_text(SECRET)
    await encoder.load([1])
    await encoder.close()
    for access in (TritonAccess(guarded.tls(None), TritonSecret(secret_file)), TritonAccess()):
        stranger = TritonEncoder(guarded.address, model_repository.config_path, access)
        with pytest.raises(EncoderUnavailable):
            await stranger.encode(1, random_inputs(2, 4), 5.0)
        await stranger.close()


@pytest.mark.parametrize("content", [b"", b"two words", b"\xff", None])
def test_a_secret_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    with pytest.raises(SetupError, match="secret"):
        TritonSecret(tmp_path / "secret")


def test_a_damaged_secret_leaves_the_earlier_one_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.watched_files.CHECK_SECONDS", 0.0)
    (tmp_path / "secret").write_text(SECRET)
    secret = TritonSecret(tmp_path / "secret")
    (tmp_path / "secret").write_bytes(b"")
    assert secret.metadata()[0][1] == SECRET


async def test_a_new_certificate_is_used_without_a_restart(
    guarded: Guarded, model_repository: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.watched_files.CHECK_SECONDS", 0.0)
    (tmp_path / "strangers").mkdir()
    stranger = Authority(tmp_path / "strangers").issue("client")
    (tmp_path / "secret").write_text(SECRET)
    access = TritonAccess(guarded.tls(stranger), TritonSecret(tmp_path / "secret"))
    encoder = TritonEncoder(guarded.address, model_repository.config_path, access)

    async def loaded() -> bool:
        try:
            await encoder.load([1])
        except EncoderUnavailable:
            return False
        return True

    with pytest.raises(EncoderUnavailable):
        await encoder.load([1])
    for old, new in ((stranger.certificate, guarded.client.certificate), (stranger.key, guarded.client.key)):
        old.write_bytes(new.read_bytes())
    await wait_until_async(loaded)
    stranger.key.unlink()
    assert (await encoder.encode(1, random_inputs(2, 4), 10.0)).shape[0] == 2
    await encoder.close()
