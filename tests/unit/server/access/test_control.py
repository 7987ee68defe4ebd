"""Where callers come from, and the access file read again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.access import control as control_module
from server.access.callers import Caller
from server.access.control import AccessControl, AccessFile, current_caller, is_local, is_loopback
from server.access.new_token import add_caller
from server.access.roles import ROLES, ROLES_OF_METHOD
from server.core.errors import ExpiredCredentials, NotAllowed, NotAuthenticated, QuotaExceeded, WrongCredentials

LOCAL, REMOTE, ISTIO = "ipv4:127.0.0.1:50000", "ipv4:192.0.2.7:50000", "ipv4:127.0.0.6:50000"
LOOPBACK, EVERYWHERE = "127.0.0.1:50051", "0.0.0.0:50051"
SEGMENT, RECORD = "segrec.v1.SegrecService/Segment", "segrec.v1.EventService/RecordEvents"
ERASE, SET_TRAFFIC = "segrec.v1.EventService/EraseUser", "segrec.v1.ModelService/SetTraffic"


@pytest.fixture(autouse=True)
def _own_caller() -> Iterator[None]:
    """Callers of these tests are not those of later ones, which run in the same context."""
    token = control_module._current.set(control_module._ANYBODY)
    yield
    control_module._current.reset(token)


class Call:
    """The part of a call's context that identifies the caller."""

    def __init__(self, peer: str = LOCAL, token: str = "", certificate: str = "") -> None:
        self._peer = peer
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._auth = {"x509_common_name": [certificate.encode()]} if certificate else {}

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._auth


def allowed(control: AccessControl, peer: str) -> set[str]:
    """The roles whose methods are admitted."""
    admitted = {}
    for method in ROLES_OF_METHOD:
        try:
            control.admit(method, Call(peer))
            admitted[method] = True
        except NotAllowed:
            admitted[method] = False
    return {role for role in ROLES if all(admitted[name] for name, roles in ROLES_OF_METHOD.items() if role in roles)}


def ignore(caller: str, outcome: str) -> None:
    pass


@pytest.mark.parametrize(
    ("address", "peer", "has_mutual_tls", "roles"),
    [
        (LOOPBACK, LOCAL, False, {"read", "record", "erase", "operate"}),
        (LOOPBACK, ISTIO, False, {"read"}),
        (LOOPBACK, ISTIO, True, {"read", "record"}),
        (EVERYWHERE, LOCAL, False, {"read"}),
        (EVERYWHERE, REMOTE, False, {"read"}),
        (EVERYWHERE, REMOTE, True, {"read", "record"}),
    ],
)
def test_without_an_access_file_only_this_machine_at_loopback_may_do_everything(
    address: str, peer: str, has_mutual_tls: bool, roles: set[str]
) -> None:
    assert allowed(AccessControl(None, address, ignore, has_mutual_tls=has_mutual_tls), peer) == roles


@pytest.mark.parametrize("peer", [LOCAL, "ipv6:%5B::1%5D:1", "ipv6:[::ffff:127.0.0.1]:1", "unix:"])
def test_local_peers_are_recognised(peer: str) -> None:
    assert is_local(peer)


@pytest.mark.parametrize("peer", [REMOTE, ISTIO, "ipv6:%5B2001:db8::1%5D:1", "ipv4:localhost:1", "", "unixes:x"])
def test_other_peers_are_recognised(peer: str) -> None:
    assert not is_local(peer)


@pytest.mark.parametrize(
    ("expected", "addresses"),
    [
        (True, ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/run/x")),
        (False, ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "segrec.local:1", ":1")),
    ],
)
def test_addresses_of_loopback_are_recognised(expected: bool, addresses: tuple[str, ...]) -> None:
    assert [is_loopback(address) for address in addresses] == [expected] * len(addresses)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("server.watched_files.CHECK_SECONDS", 0.0)
    return tmp_path / "access.toml"


def test_with_an_access_file_callers_of_this_machine_need_credentials_too(path: Path) -> None:
    token = add_caller(path, "shop", ["read"])
    outcomes: list[tuple[str, str]] = []
    control = AccessControl(AccessFile(path), LOOPBACK, lambda *outcome: outcomes.append(outcome))
    assert control.admit(SEGMENT, Call(token=token)).name == "shop"
    assert current_caller().name == "shop"
    for call, error in ((Call(), NotAuthenticated), (Call(token="wrong"), WrongCredentials)):
        with pytest.raises(error):
            control.admit(SEGMENT, call)
    with pytest.raises(NotAllowed, match="EraseUser needs the role erase, which shop does not have"):
        control.admit(ERASE, Call(token=token))
    assert outcomes == [
        ("shop", "ADMITTED"),
        ("", "NO_CREDENTIALS"),
        ("", "WRONG_CREDENTIALS"),
        ("shop", "NOT_ALLOWED"),
    ]


def test_a_certificate_may_name_the_caller_and_a_wrong_token_is_not_forgiven(path: Path) -> None:
    path.write_text('[[callers]]\nname = "shop"\nroles = ["read"]\ncertificates = ["shop.example.com"]\n')
    control = AccessControl(AccessFile(path), EVERYWHERE, ignore, has_mutual_tls=True)
    assert control.admit(SEGMENT, Call(REMOTE, certificate="shop.example.com")).name == "shop"
    for call in (Call(REMOTE, certificate="x"), Call(REMOTE, token="wrong", certificate="shop.example.com")):
        with pytest.raises(WrongCredentials):
            control.admit(SEGMENT, call)


def test_credentials_expire(path: Path) -> None:
    token = add_caller(path, "shop", ["read"])
    path.write_text(path.read_text().rstrip() + "\nexpires = 2027-01-01T08:00:00+08:00\n")
    now = [1_798_761_599.0]
    control = AccessControl(AccessFile(path, clock=lambda: now[0]), LOOPBACK, ignore)
    control.admit(SEGMENT, Call(token=token))
    now[0] += 1.0
    with pytest.raises(ExpiredCredentials, match="shop expired at 2027-01-01T00:00:00"):
        control.admit(SEGMENT, Call(token=token))


def test_the_file_is_read_again_and_a_damaged_one_changes_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = add_caller(path, "shop", ["read"])
    control = AccessControl(AccessFile(path), LOOPBACK, ignore)
    second = add_caller(path, "desk", ["erase"])
    assert control.admit(ERASE, Call(token=second)).name == "desk"
    good = path.read_text()
    path.write_text("callers = [")
    assert control.admit(SEGMENT, Call(token=first)).name == "shop"
    assert "is not TOML" in caplog.text
    path.unlink()
    assert control.admit(SEGMENT, Call(token=first)).name == "shop"
    path.write_text(good[good.index("[[callers]]", 1) :])
    with pytest.raises(WrongCredentials):
        control.admit(SEGMENT, Call(token=first))


def test_quotas_hold_for_each_caller_and_go_on_when_the_file_is_read_again(path: Path) -> None:
    busy = add_caller(path, "busy", ["record"])
    path.write_text(path.read_text().rstrip() + "\ncalls_per_second = 1\nevents_per_second = 10\n")
    calm = add_caller(path, "calm", ["record"])
    now = [0.0]
    control = AccessControl(AccessFile(path, quota_clock=lambda: now[0]), LOOPBACK, ignore)
    for _ in range(2):
        control.admit(RECORD, Call(token=busy))
    current_caller().take_events(20)
    with pytest.raises(QuotaExceeded) as caught:
        current_caller().take_events(1)
    assert caught.value.retry_seconds == pytest.approx(0.1)
    add_caller(path, "new", ["read"])
    with pytest.raises(QuotaExceeded, match="busy makes more calls") as caught:
        control.admit(RECORD, Call(token=busy))
    assert caught.value.retry_seconds == pytest.approx(1.0)
    for _ in range(100):
        control.admit(RECORD, Call(token=calm))
    now[0] += 1.0
    assert isinstance(control.admit(RECORD, Call(token=busy)), Caller)
