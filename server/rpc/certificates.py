"""The server's certificate, its key, and the clients' authority: checked at start, read again when they change."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from server.core.errors import SetupError
from server.settings import Settings
from server.watched_files import WatchedFiles

log = logging.getLogger(__name__)

WARNING_DAYS = 14
"""A certificate that ends sooner than this is warned about."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: certificate chain, its key, and for mutual TLS the root certificates of the clients."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class _Content:
    configuration: Any
    ends: datetime


class ServerCertificates:
    """What the server shows to its callers. New connections get the files as they are then.

    Files that cannot be used raise `SetupError` at start; later they are logged, and those read before stay in use.
    `clock` is the time of day in seconds since 1970.
    """

    def __init__(self, files: TlsFiles, clock: Callable[[], float] = time.time) -> None:
        self._files = files
        self._clock = clock
        self._lock = threading.Lock()  # gRPC asks in threads of its own
        self._watched = WatchedFiles([path for path in (files.certificate, files.key, files.client_ca) if path])
        self._content = self._read()

    @property
    def ends_seconds(self) -> float:
        """When the certificate in use expires, in seconds since 1970."""
        return self._current().ends.timestamp()

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for one port."""
        given = self._current()

        def changed() -> Any:
            """What to use from now on; None for what gRPC has already."""
            nonlocal given
            current = self._current()
            if current is given:
                return None
            given = current
            return current.configuration

        has_client_ca = self._files.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(
            given.configuration, changed, require_client_authentication=has_client_ca
        )

    def _current(self) -> _Content:
        with self._lock:
            if self._watched.have_changed():
                try:
                    self._content = self._read()
                    log.info("the certificate %s was read again", self._files.certificate)
                except SetupError as error:
                    log.error("%s; the certificate that was read before stays in use", error)
            return self._content

    def _read(self) -> _Content:
        chain = _read(self._files.certificate, "tls_certificate")
        key = _read(self._files.key, "tls_key")
        ends = self._check(chain, key)
        roots = None
        if self._files.client_ca is not None:
            roots = _read(self._files.client_ca, "tls_client_ca")
            _certificates(roots, self._files.client_ca, "tls_client_ca")
        return _Content(grpc.ssl_server_certificate_configuration([(key, chain)], roots), ends)

    def _check(self, chain: bytes, key: bytes) -> datetime:
        """The end of the certificate. Raises `SetupError` unless it is valid now and belongs to the key."""
        path = self._files.certificate
        certificate = _certificates(chain, path, "tls_certificate")[0]
        if _public_key(key, self._files.key) != certificate.public_key().public_bytes(*_FORM):
            raise SetupError(
                f"tls_key {self._files.key} is not the key of tls_certificate {path}: give the two that go together"
            )
        now, ends = datetime.fromtimestamp(self._clock(), UTC), certificate.not_valid_after_utc
        if now >= ends:
            raise SetupError(f"tls_certificate {path} expired at {ends:%Y-%m-%d %H:%M} UTC: have a new one issued")
        if now < certificate.not_valid_before_utc:
            begins = certificate.not_valid_before_utc
            raise SetupError(f"tls_certificate {path} is valid from {begins:%Y-%m-%d %H:%M} UTC only: check the clock")
        if (ends - now).days < WARNING_DAYS:
            log.warning("tls_certificate %s expires at %s UTC: have a new one issued", path, f"{ends:%Y-%m-%d %H:%M}")
        return ends


_FORM = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def certificates_of(settings: Settings) -> ServerCertificates | None:
    """The certificates that the settings name; None without TLS. Raises `SetupError`."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return ServerCertificates(TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca))


def _certificates(content: bytes, path: Path, setting: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise SetupError(f"{setting} {path} holds no certificate in PEM format") from error


def _public_key(content: bytes, path: Path) -> bytes:
    try:
        return load_pem_private_key(content, password=None).public_key().public_bytes(*_FORM)
    except TypeError as error:
        raise SetupError(f"tls_key {path} has a password: give a key without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SetupError(f"tls_key {path} holds no private key in PEM format") from error


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"{setting} {path} cannot be read: {error.strerror}") from error
