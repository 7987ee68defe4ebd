"""TLS: what a server refuses at start, what callers read, and certificates that change while it runs."""

import datetime
import logging
from pathlib import Path

import pytest
from segrec import AsyncModelClient, SegrecClient, Tls
from segrec.errors import InvalidArgument, Unavailable

from server.core.errors import SetupError
from server.rpc.certificates import ServerCertificates, TlsFiles
from tests.support.certificates import Authority, Pair
from tests.support.endpoint import serving

DAY = datetime.timedelta(days=1)


async def ask(address: str, tls: Tls | None) -> None:
    async with AsyncModelClient(address, tls=tls, timeout_seconds=10.0) as client:
        await client.list_releases()


def shown(roots: Path | None, pair: Pair | None = None) -> Tls:
    files = (str(pair.certificate), str(pair.key)) if pair else ("", "")
    return Tls(str(roots or ""), *files)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def strangers(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "strangers")


async def test_callers_read_what_is_wrong_with_the_connection(authority: Authority, strangers: Authority) -> None:
    server, client = authority.issue("server"), authority.issue("client")
    files = TlsFiles(server.certificate, server.key, authority.root)
    expired, strange = authority.issue("expired", valid=-DAY), strangers.issue("strange")
    async with serving(ServerCertificates(files)) as address:
        await ask(address, shown(authority.root, client))
        for tls in (None, shown(authority.root), shown(authority.root, expired), shown(authority.root, strange)):
            with pytest.raises(Unavailable, match=r"closes the connection.*\(--tls-ca\).*--tls-cert, --tls-key"):
                await ask(address, tls)
        with pytest.raises(Unavailable, match="not of an authority that this client trusts"):
            await ask(address, shown(strangers.root, client))
    other = authority.issue("elsewhere", is_local=False)
    async with serving(ServerCertificates(TlsFiles(other.certificate, other.key))) as address:
        with pytest.raises(Unavailable, match=r"certificate is not for the name in 127\.0\.0\.1"):
            await ask(address, shown(authority.root))
    async with serving() as address:
        with pytest.raises(Unavailable, match="does not use TLS"):
            await ask(address, shown(authority.root))
    with pytest.raises(Unavailable, match="No server answers"):
        await ask(address, shown(authority.root))
    ends = datetime.datetime.now(datetime.UTC) - 2 * DAY
    stale = ServerCertificates(TlsFiles(expired.certificate, expired.key), ends.timestamp)
    async with serving(stale) as address:
        with pytest.raises(Unavailable, match=r"certificate of the server at .* has expired"):
            await ask(address, shown(authority.root))


async def test_certificates_that_change_are_shown_to_new_connections(
    authority: Authority, strangers: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.watched_files.CHECK_SECONDS", 0.0)
    pair = authority.issue("server")
    roots = authority.root.with_name("clients.pem")
    roots.write_bytes(authority.root.read_bytes())
    ours, theirs = authority.issue("ours"), strangers.issue("theirs")
    certificates = ServerCertificates(TlsFiles(pair.certificate, pair.key, roots))
    async with serving(certificates) as address:
        await ask(address, shown(authority.root, ours))
        new = strangers.issue("new", valid=30 * DAY)
        pair.certificate.write_bytes(new.certificate.read_bytes())  # the key follows later
        await ask(address, shown(authority.root, ours))
        assert "is not the key of tls_certificate" in caplog.text
        pair.key.write_bytes(new.key.read_bytes())
        await ask(address, shown(strangers.root, ours))
        roots.write_bytes(strangers.root.read_bytes())
        await ask(address, shown(strangers.root, theirs))
        with pytest.raises(Unavailable, match="closes the connection"):
            await ask(address, shown(strangers.root, ours))
        roots.write_bytes(b"damaged")
        await ask(address, shown(strangers.root, theirs))
    left = certificates.ends_seconds - datetime.datetime.now(datetime.UTC).timestamp()
    assert left == pytest.approx(30 * 86400, abs=3600)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no certificate", "tls_certificate .*server.pem cannot be read: No such file"),
        ("garbage certificate", "tls_certificate .*server.pem holds no certificate in PEM format"),
        ("garbage key", "tls_key .*server.key.pem holds no private key in PEM format"),
        ("other key", "tls_key .* is not the key of tls_certificate .*server.pem"),
        ("garbage roots", "tls_client_ca .*authority.pem holds no certificate"),
        ("expired", r"tls_certificate .*server.pem expired at \d{4}-\d\d-\d\d \d\d:\d\d UTC"),
        ("early", "is valid from .* only: check the clock"),
    ],
)
def test_files_that_cannot_be_used_are_named_at_start(authority: Authority, damage: str, message: str) -> None:
    pair = authority.issue("server", valid=-DAY if damage == "expired" else DAY)
    now = datetime.datetime.now(datetime.UTC)
    match damage:
        case "no certificate":
            pair.certificate.unlink()
        case "garbage certificate":
            pair.certificate.write_bytes(b"garbage")
        case "garbage key":
            pair.key.write_bytes(b"garbage")
        case "other key":
            pair.key.write_bytes(authority.issue("other").key.read_bytes())
        case "garbage roots":
            authority.root.write_bytes(b"garbage")
        case "early":
            now -= 365 * DAY
    with pytest.raises(SetupError, match=message) as caught:
        ServerCertificates(TlsFiles(pair.certificate, pair.key, authority.root), now.timestamp)
    assert "\n" not in str(caught.value)


def test_a_certificate_that_ends_soon_is_warned_about(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    for days, is_warned in ((20, False), (13, True)):
        pair = authority.issue("server", valid=days * DAY)
        with caplog.at_level(logging.WARNING):
            ServerCertificates(TlsFiles(pair.certificate, pair.key))
        assert ("have a new one issued" in caplog.text) is is_warned


def test_a_client_refuses_files_that_cannot_be_used(authority: Authority) -> None:
    pair, other = authority.issue("client"), authority.issue("other")
    garbage = authority.root.with_name("garbage.pem")
    garbage.write_bytes(b"garbage")
    for tls, message in (
        (Tls(str(garbage)), "garbage.pem holds no certificates"),
        (Tls("", str(pair.certificate), str(other.key)), "are not a certificate and its key"),
        (Tls("", str(pair.certificate)), "needs its key"),
        (Tls("nowhere.pem"), "Cannot read nowhere.pem"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            SegrecClient("localhost:1", tls=tls)
