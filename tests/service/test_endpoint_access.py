"""Access at endpoints beyond loopback, callers by their certificates, and reflection."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from segrec import AsyncModelClient, Tls
from segrec.errors import PermissionDenied

from server.rpc.certificates import ServerCertificates, TlsFiles
from server.settings import Settings
from tests.support.certificates import Authority, Pair
from tests.support.endpoint import serving


async def change_traffic(address: str, tls: Tls | None = None) -> str:
    """OK, or the reason of the refusal."""
    async with AsyncModelClient(address, tls=tls, timeout_seconds=10.0) as client:
        await client.list_releases()
        try:
            await client.rollback()
        except PermissionDenied as error:
            return error.reason
    return "OK"


async def test_at_an_address_beyond_loopback_nobody_operates_without_an_access_file() -> None:
    async with serving(host="127.0.0.1") as address:
        assert await change_traffic(address) == "OK"
    async with serving(host="0.0.0.0") as address:
        assert await change_traffic(address) == "NOT_ALLOWED"


async def test_certificates_name_their_callers(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.issue("server")

    def shown(pair: Pair) -> Tls:
        return Tls(str(authority.root), str(pair.certificate), str(pair.key))

    reader, operator, other = (
        authority.issue(name, is_local=False) for name in ("reader.example", "operator.example", "other.example")
    )
    access_file = tmp_path / "access.toml"
    access_file.write_text(
        '[[callers]]\nname = "reader"\nroles = ["read"]\ncertificates = ["reader.example"]\n'
        '[[callers]]\nname = "operator"\nroles = ["operate"]\ncertificates = ["operator.example"]\n'
    )
    certificates = ServerCertificates(TlsFiles(server.certificate, server.key, authority.root))
    async with serving(certificates, host="0.0.0.0", access_file=access_file) as address:
        assert await change_traffic(address, shown(operator)) == "OK"
        assert await change_traffic(address, shown(reader)) == "NOT_ALLOWED"
        with pytest.raises(PermissionDenied, match="names no caller with this client certificate") as caught:
            await change_traffic(address, shown(other))
        assert caught.value.reason == "WRONG_CREDENTIALS"
        assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("host", "setting", "answers"),
    [("127.0.0.1", None, True), ("0.0.0.0", None, False), ("0.0.0.0", True, True), ("127.0.0.1", False, False)],
)
async def test_reflection_answers_on_loopback_unless_the_setting_says_otherwise(
    host: str, setting: bool | None, answers: bool
) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with (
        serving(host=host, settings=Settings(reflection=setting)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=10)
        services = [found.name async for answer in listed(call) for found in answer.list_services_response.service]
    assert ("segrec.v1.ModelService" in services) is answers


async def listed(call: Any) -> AsyncIterator[Any]:
    """The answers of a call; none where the server does not know the method."""
    try:
        async for answer in call:
            yield answer
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
