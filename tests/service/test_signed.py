"""A server that asks for signatures, beside releases with one, without one, and with that of somebody else."""

import stat
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from segrec import ModelClient, SegrecClient
from segrec.v1.model_service_pb2 import ReleaseState

from server.core.repository.layout import MODEL_NAME
from server.core.repository.signature import sign_manifest
from tests.support.releases import tiny_release
from tests.support.server import StartServer
from tests.support.waiting import wait_until


def test_only_signed_releases_answer_and_signing_needs_no_restart(start_server: StartServer, tmp_path: Path) -> None:
    key, repository = Ed25519PrivateKey.generate(), tmp_path / "repository"
    (tmp_path / "public.pem").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    sign_manifest(tiny_release(repository, 1), key)
    tiny_release(repository, 2)
    sign_manifest(tiny_release(repository, 3), Ed25519PrivateKey.generate())
    model, marker = repository / MODEL_NAME, tmp_path / "a stranger's code ran"
    stub = model / "triton_python_backend_stub"  # the Python backend prefers such a file to its own stub
    stub.write_text(f"#!/bin/sh\ntouch '{marker}'\nexit 1\n")
    stub.chmod(0o755)
    (model / "config.pbtxt").write_text('name: "user_encoder"\nbackend: "python"\n')
    server = start_server("--release-key", str(tmp_path / "public.pem"))
    server.wait_until_serving()
    with (
        SegrecClient(server.address, timeout_seconds=20) as client,
        ModelClient(server.model_address, timeout_seconds=20) as models,
    ):
        assert client.segment("anyone").info.release == 1
        faults = {release.release: release for release in models.list_releases()}
        assert {faults[2].state, faults[3].state} == {ReleaseState.RELEASE_STATE_FAILED}
        assert "manifest.sig is missing, and this server accepts only signed releases" in faults[2].failure
        assert "was not made for this manifest.json by the key that this server trusts" in faults[3].failure
        sign_manifest(repository / MODEL_NAME / "2", key)
        wait_until(lambda: client.segment("anyone").info.release == 2)
        (model / "2" / "model.onnx").write_bytes(b"changed after the check")
        [triton] = [
            p for p in psutil.Process(server.process.pid).children(recursive=True) if p.name() == "tritonserver"
        ]
        triton.kill()  # the next one loads the copy that was checked
        wait_until(lambda: server.output.count("Triton answers on") == 2)
        wait_until(lambda: not client.segment("anyone else").info.degraded)
        assert client.segment("somebody").info.release == 2
    assert not marker.exists()
    copies = tmp_path / "verified_releases"
    assert stat.S_IMODE(copies.stat().st_mode) == 0o700
    assert sorted(path.name for path in (copies / MODEL_NAME).iterdir()) == ["1", "2", "config.pbtxt"]


def test_a_key_that_is_none_stops_the_start_with_a_sentence(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "public.pem").write_text("no key")
    server = start_server("--release-key", str(tmp_path / "public.pem"))
    server.wait_until_said("is not a public key in PEM format", 60)
