"""The caller's token: how it is sent, and when the client warns."""

import logging
from pathlib import Path

import pytest
from segrec.channel import Tls, read_token, token_metadata
from segrec.errors import InvalidArgument


def test_a_token_that_travels_unencrypted_to_another_machine_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cases = [
        ("segrec.example:50051", None, True),
        ("10.0.0.1:50051", None, True),
        ("segrec.example:50051", Tls(), False),
        ("127.0.0.1:50051", None, False),
        ("localhost:50051", None, False),
        ("[::1]:50051", None, False),
        ("unix:/run/segrec", None, False),
    ]
    for address, tls, is_warned in cases:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert token_metadata("secret", address, tls) == (("authorization", "Bearer secret"),)
        assert ("unencrypted" in caplog.text) is is_warned, address
        assert "secret" not in caplog.text
    assert token_metadata("", "segrec.example:50051", None) == ()


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "größe"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        token_metadata(token, "localhost:1", None)
    assert token not in str(caught.value)


def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" secret\n")
    assert read_token(str(tmp_path / "token")) == "secret"
    assert read_token("") == ""
    (tmp_path / "token").write_bytes(b"\xff")
    for name in ("token", "nowhere"):
        with pytest.raises(InvalidArgument, match=f"token file .*{name} cannot be read"):
            read_token(str(tmp_path / name))
