"""A change of the traffic whose answer is lost is made once, and the command says what is in force."""

# ruff: noqa: N802 - gRPC names the methods

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from segrec import ModelClient
from segrec.cli import main
from segrec.errors import Unavailable
from segrec.v1 import model_service_pb2 as pb
from segrec.v1 import model_service_pb2_grpc

from server.core.repository.audit import read_audit
from server.core.repository.traffic import Traffic, change_traffic, read_traffic, rolled_back
from server.rpc.messages.traffic_messages import record_message


class LosesAnswers(model_service_pb2_grpc.ModelServiceServicer):
    """Rolls back a repository of releases 1 to 3; the connection ends before the answer, or before the call."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.calls = 0
        self.is_lost_before = False

    def ListReleases(self, request: pb.ListReleasesRequest, context: Any) -> pb.ListReleasesResponse:
        return pb.ListReleasesResponse(traffic=record_message(read_traffic(self.repository)))

    def GetRelease(self, request: pb.GetReleaseRequest, context: Any) -> pb.GetReleaseResponse:
        raise NotImplementedError

    def SetTraffic(self, request: pb.SetTrafficRequest, context: Any) -> pb.SetTrafficResponse:
        raise NotImplementedError

    def Rollback(self, request: pb.RollbackRequest, context: Any) -> pb.RollbackResponse:
        def change(before: Traffic) -> Traffic:
            before.check_etag(request.etag)
            return rolled_back(before, [3, 2, 1])[0]

        self.calls += 1
        if not self.is_lost_before:
            change_traffic(self.repository, change, "rollback", request.changed_by)
        context.abort(grpc.StatusCode.UNAVAILABLE, "recvmsg: Connection reset by peer")
        raise AssertionError


@pytest.fixture
def service(tmp_path: Path) -> LosesAnswers:
    for number in (1, 2, 3):
        change_traffic(tmp_path, lambda before, number=number: before.with_stable(number), "traffic", "a test")  # type: ignore[misc]
    return LosesAnswers(tmp_path)


@pytest.fixture
def address(service: LosesAnswers) -> Iterator[str]:
    with ThreadPoolExecutor(2) as executor:
        server = grpc.server(executor)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def test_a_rollback_whose_answer_is_lost_is_not_repeated(address: str, service: LosesAnswers) -> None:
    with ModelClient(address, timeout_seconds=5) as models, pytest.raises(Unavailable):
        models.rollback()
    assert service.calls == 1
    assert read_traffic(service.repository).stable == 2


def test_the_command_says_what_is_in_force_after_a_lost_answer(
    address: str, service: LosesAnswers, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["rollback", "--address", address]) == 0
    assert "answer was lost. In force now: Release 2 answers everyone" in capsys.readouterr().out
    assert [entry.what for entry in read_audit(service.repository)].count("rollback") == 1


def test_the_command_fails_when_the_rollback_was_not_made(
    address: str, service: LosesAnswers, capsys: pytest.CaptureFixture[str]
) -> None:
    service.is_lost_before = True
    assert main.main(["rollback", "--address", address]) != 0
    assert "was lost" in capsys.readouterr().err
    assert read_traffic(service.repository).stable == 3
