"""Who may do what at the real server: roles, credentials, quotas, tokens of the client, reflection."""

import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from segrec import AsyncSegrecClient, ModelClient, SegrecClient
from segrec.cli import main
from segrec.errors import PermissionDenied
from segrec.v1 import catalogue_service_pb2, event_service_pb2, model_service_pb2, segrec_service_pb2

from server.access.new_token import add_caller
from server.access.roles import ROLES, ROLES_OF_METHOD
from server.core.erasure import MARK_BYTES
from server.core.repository.audit import read_audit
from server.core.repository.traffic import read_traffic
from tests.support.releases import tiny_release
from tests.support.server import ServerProcess, StartServer
from tests.support.waiting import wait_until
from training.cli.traffic_tables import details_in_short

SERVICES = [
    service
    for module in (segrec_service_pb2, catalogue_service_pb2, event_service_pb2, model_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]
METHODS = {f"{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
REFUSALS = ("NO_CREDENTIALS", "WRONG_CREDENTIALS", "EXPIRED_CREDENTIALS", "NOT_ALLOWED")


def test_every_method_of_every_service_has_a_role() -> None:
    assert set(ROLES_OF_METHOD) == set(METHODS)
    assert {role for roles in ROLES_OF_METHOD.values() for role in roles} == set(ROLES)


@dataclass(frozen=True)
class Guarded:
    """A server with an access file, and a token for each role, named after it."""

    server: ServerProcess
    access_file: Path
    tokens: dict[str, str]

    def ask(self, method: str, token: str) -> str:
        """The machine-readable reason of the answer to an empty request; OK for an answer."""
        is_model = method.startswith("segrec.v1.ModelService/")
        address = self.server.model_address if is_model else self.server.address
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        with grpc.insecure_channel(address) as channel:
            is_stream = METHODS[method].client_streaming
            call: Any = (channel.stream_stream if is_stream else channel.unary_unary)(f"/{method}")
            try:
                answer = call(iter([b""]) if is_stream else b"", metadata=metadata, timeout=20)
                return f"OK {len(list(answer))}" if is_stream else "OK"
            except grpc.RpcError as error:
                return reason_of(error)


def details_of(error: Any) -> Status:
    return Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])


def reason_of(error: Any) -> str:
    info = ErrorInfo()
    details_of(error).details[0].Unpack(info)
    return str(info.reason)


@pytest.fixture
def guarded(start_server: StartServer, tmp_path: Path) -> Guarded:
    for number in (1, 2):
        tiny_release(tmp_path / "repository", number)
    path = tmp_path / "access.toml"
    tokens: dict[str, str] = {}
    for role in ROLES:
        tokens[role] = add_caller(path, role, [role])
    tokens["expired"] = add_caller(path, "expired", ROLES)
    path.write_text(path.read_text().rstrip() + "\nexpires = 2020-01-01T00:00:00Z\n\n")
    tokens["busy"] = add_caller(path, "busy", ROLES)
    path.write_text(path.read_text().rstrip() + "\ncalls_per_second = 0.5\nevents_per_second = 1\n\n")
    server = start_server("--access-file", str(path))
    server.wait_until_serving()
    return Guarded(server, path, tokens)


def test_roles_and_methods_with_no_wrong_expired_and_right_credentials(guarded: Guarded) -> None:
    for method, any_of in ROLES_OF_METHOD.items():
        assert guarded.ask(method, "") == "NO_CREDENTIALS", method
        assert guarded.ask(method, "wrong") == "WRONG_CREDENTIALS", method
        assert guarded.ask(method, guarded.tokens["expired"]) == "EXPIRED_CREDENTIALS", method
        for role in ROLES:
            reason = guarded.ask(method, guarded.tokens[role])
            assert (reason not in REFUSALS) if role in any_of else (reason == "NOT_ALLOWED"), (method, role, reason)
    with grpc.insecure_channel(guarded.server.address) as channel:  # health asks for nothing
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    output = guarded.server.output
    assert not [token for token in guarded.tokens.values() if token in output]


async def test_clients_and_commands_send_the_token_and_changes_are_audited_under_the_callers_name(
    guarded: Guarded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, tokens = guarded.server, guarded.tokens
    with SegrecClient(server.address, token=tokens["read"], timeout_seconds=20) as client:
        assert client.segment("u").info.release == 2
        assert len(list(client.stream_segment(["a", "b"]))) == 2
        with pytest.raises(PermissionDenied, match="role erase") as caught:
            client.erase("u")
        assert caught.value.reason == "NOT_ALLOWED"
    async with AsyncSegrecClient(server.address, token=tokens["read"], timeout_seconds=20) as client:
        assert (await client.segment("u")).info.release == 2
        assert len([row async for row in client.stream_segment(["a", "b"])]) == 2
    with SegrecClient(server.address) as client, pytest.raises(PermissionDenied, match="--token-file") as caught:
        list(client.stream_segment(["a"]))
    assert caught.value.reason == "NO_CREDENTIALS"
    token_file = tmp_path / "token"
    command = ["traffic", "1=100", "--by", "ada", "--address", server.model_address, "--token-file", str(token_file)]
    token_file.write_text(tokens["read"])
    assert main.main(command) == 1
    assert "role operate" in capsys.readouterr().err
    token_file.write_text(f"{tokens['operate']}\n")
    assert main.main(command) == 0
    assert read_traffic(tmp_path / "repository").stable == 1
    assert read_audit(tmp_path / "repository")[-1].who == "operate (ada)"
    with ModelClient(server.model_address, token=tokens["operate"], timeout_seconds=20) as models:
        models.rollback()
    assert read_audit(tmp_path / "repository")[-1].who == "operate"
    with SegrecClient(server.address, token=tokens["erase"], timeout_seconds=20) as client:
        client.erase("somebody-unheard-of")
    entry = read_audit(tmp_path / "repository")[-1]
    assert (entry.who, entry.what, entry.details["erased_event_count"]) == ("erase", "erase", 0)
    assert len(entry.details["user_mark"]) == 2 * MARK_BYTES
    assert "somebody-unheard-of" not in (tmp_path / "repository" / "audit.jsonl").read_text()
    assert "user with mark" in details_in_short(entry)


def test_beyond_its_quota_a_caller_is_told_when_to_come_back_and_others_are_answered(guarded: Guarded) -> None:
    method, server = "segrec.v1.SegrecService/ListSegments", guarded.server
    assert guarded.ask(method, guarded.tokens["busy"]) == "OK"
    metadata = (("authorization", f"Bearer {guarded.tokens['busy']}"),)
    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.unary_unary(f"/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", metadata=metadata, timeout=20)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(caught.value) == "QUOTA_EXCEEDED"
    wait = RetryInfo()
    assert any(detail.Unpack(wait) for detail in details_of(caught.value).details)
    assert 0 < wait.retry_delay.ToMilliseconds() <= 2000
    assert guarded.ask(method, guarded.tokens["read"]) == "OK"
    stream = "segrec.v1.SegrecService/StreamSegment"  # a stream waits for its turn instead
    assert guarded.ask(stream, guarded.tokens["busy"]) == guarded.ask(stream, guarded.tokens["read"])
    path = guarded.access_file  # a longer leash, without a restart
    path.write_text(path.read_text().replace("calls_per_second = 0.5", "calls_per_second = 1000"))
    wait_until(lambda: guarded.ask(method, guarded.tokens["busy"]) == "OK")
    text = metrics_of(server)
    assert 'segrec_caller_calls_total{caller="busy",outcome="QUOTA_EXCEEDED"}' in text
    assert 'segrec_caller_calls_total{caller="read",outcome="ADMITTED"}' in text


def metrics_of(server: ServerProcess) -> str:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as response:
        return str(response.read().decode())
