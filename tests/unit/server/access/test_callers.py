"""The access file: what is refused, and what a new token adds."""

from pathlib import Path

import pytest

from server.access.callers import Callers, read_entries, token_hash
from server.access.new_token import add_caller, token_command
from server.core.errors import SetupError

DIGEST = token_hash("secret")


def caller(name: str = "shop", extra: str = "", roles: str = '"read"', digest: str = DIGEST) -> str:
    return f'[[callers]]\nname = "{name}"\nroles = [{roles}]\ntoken_sha256 = ["{digest}"]\n{extra}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("callers = [", "is not TOML"),
        ("", "callers: Field required"),
        ("surprise = 1\ncallers = []", "surprise"),
        (caller(roles='"root"'), "'read', 'record', 'erase' or 'operate'"),
        (caller(digest="secret"), "token_sha256"),
        (caller(name="Shop 1"), "name"),
        (caller(extra="expires = 2027-01-01T00:00:00"), "timezone"),
        (caller(extra="calls_per_second = 0"), "greater than 0"),
        (caller() + caller(digest="0" * 64), "the name 'shop' twice"),
        (caller() + caller(name="other"), "a hash of token_sha256 .* twice"),
        ('[[callers]]\nname = "shop"\nroles = ["read"]', "neither token_sha256 nor certificates"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "access.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SetupError, match=message) as caught:
        read_entries(path)
    assert "access.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_new_token_is_that_of_its_caller_and_is_not_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "access.toml"
    token_command(["shop", "read", "record", "--access-file", str(path)])
    token = capsys.readouterr().out.strip()
    other = add_caller(path, "desk", ["erase"])
    assert token not in path.read_text()
    callers = Callers.read(path, lambda: 0.0)
    shop, desk = callers.with_token(token), callers.with_token(other)
    assert shop
    assert desk
    assert (shop.name, shop.roles, desk.name, desk.roles) == ("shop", {"read", "record"}, "desk", {"erase"})
    assert callers.with_token("") is None
    before = path.read_text()
    for name, message in (("shop", "has a caller shop already"), ("Shop", "other characters")):
        with pytest.raises(SetupError, match=message):
            add_caller(path, name, ["read"])
    assert path.read_text() == before
