"""What becomes of gRPC's own errors."""

import grpc
import pytest
from segrec.errors import SegrecError, Unavailable, error_of_call


class _Call(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[()]:
        return ()


def test_a_call_that_the_server_ends_as_it_stops_may_be_repeated() -> None:
    error = error_of_call(_Call(grpc.StatusCode.CANCELLED, "Cancelled on the server side"), "host:1")
    assert isinstance(error, Unavailable)
    assert "host:1 ended the call" in str(error)


@pytest.mark.parametrize("details", ["Locally cancelled by application!", "Channel closed!"])
def test_a_call_that_the_caller_cancels_stays_cancelled(details: str) -> None:
    error = error_of_call(_Call(grpc.StatusCode.CANCELLED, details), "host:1")
    assert type(error) is SegrecError
    assert error.code is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(
    ("details", "sentence"),
    [
        (
            "connections to all backends failing; last error: UNKNOWN: recvmsg:Connection reset by peer",
            "with TLS does so",
        ),
        ("connections to all backends failing; last error: UNAVAILABLE: Socket closed", r"--tls-ca"),
        ("connections to all backends failing; last error: UNKNOWN: Connection refused", "No server answers at host:1"),
        ("Socket closed", "The connection to host:1 was lost"),
        ("errors resolving host:1: [Domain name not found]", "The name in host:1 is not known"),
    ],
)
def test_what_is_wrong_with_a_connection_is_said(details: str, sentence: str) -> None:
    with pytest.raises(Unavailable, match=sentence):
        raise error_of_call(_Call(grpc.StatusCode.UNAVAILABLE, details), "host:1")
