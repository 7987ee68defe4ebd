"""How the clients connect: TLS, retries, keepalive and message sizes, for blocking and asyncio channels."""

import json
import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc

from segrec.calls import Metadata
from segrec.errors import InvalidArgument

log = logging.getLogger(__name__)

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Default address of `segrec-serve`."""
DEFAULT_MODEL_ADDRESS = "127.0.0.1:50052"
"""Default address of the server's ModelService."""

DEFAULT_TIMEOUT_SECONDS = 5.0
"""Deadline of a unary call of the clients and of the command line, where none is given."""

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# These calls have the same effect when they are repeated after a lost answer. SetTraffic and Rollback have not:
# somebody may have changed the traffic in between. The client resumes streams: it knows which chunks it has.
_REPEATABLE = {
    "SegrecService": ("Segment", "Recommend", "ListSegments", "GetSegment"),
    "EventService": ("RecordEvents", "ListEvents", "EraseUser"),
    "CatalogueService": ("ListItems", "GetItem", "SimilarItems", "ListCategories", "ListActions"),
    "ModelService": ("ListReleases", "GetRelease"),
}
_METHOD_CONFIG = {
    "name": [
        {"service": f"segrec.v1.{service}", "method": method}
        for service, methods in _REPEATABLE.items()
        for method in methods
    ],
    "retryPolicy": _RETRY,
}

# Keepalive also sets TCP_USER_TIMEOUT: a connection whose peer has vanished is given up after 10 s, not 15 minutes.
_CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
)


def _options(policy: str) -> list[tuple[str, int | str]]:
    """Options of a channel that chooses among the addresses of a name by a policy of gRPC's."""
    config = {"loadBalancingConfig": [{policy: {}}], "methodConfig": [_METHOD_CONFIG]}
    return [("grpc.service_config", json.dumps(config)), *_CHANNEL_OPTIONS]


PICK_FIRST, ROUND_ROBIN = "pick_first", "round_robin"
"""Stay with the first server of a name that answers; or take the servers of a name in turn, call by call."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of PEM files for an encrypted connection.

    `root_ca` holds the trusted root certificates; empty means gRPC's own. `client_certificate` and `client_key`
    identify the caller to a server with mutual TLS; both or neither are set.
    """

    root_ca: str = ""
    client_certificate: str = ""
    client_key: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises InvalidArgument when one of them is missing or cannot be used."""
        if bool(self.client_certificate) != bool(self.client_key):
            raise InvalidArgument("A client certificate needs its key, and a key its certificate: give both or neither")
        files = [_read(path) for path in (self.root_ca, self.client_key, self.client_certificate)]
        self._check()
        return grpc.ssl_channel_credentials(*files)

    def _check(self) -> None:
        """gRPC would take any files, and then fail to connect without saying why."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.root_ca:
                context.load_verify_locations(self.root_ca)
        except ssl.SSLError as error:
            raise InvalidArgument(f"{self.root_ca} holds no certificates in PEM format") from error
        try:
            if self.client_certificate:
                context.load_cert_chain(self.client_certificate, self.client_key, password="")
        except ssl.SSLError as error:
            raise InvalidArgument(
                f"{self.client_certificate} and {self.client_key} are not a certificate and its key, in PEM format and "
                "without a password"
            ) from error


def _read(path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"Cannot read {path}: {error.strerror}") from error


def token_metadata(token: str, address: str, tls: Tls | None) -> Metadata:
    """Metadata that says who calls; empty without a token.

    Logs a warning when the token would travel unencrypted to another machine. Raises InvalidArgument for a token that
    cannot be sent.
    """
    if not token:
        return ()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InvalidArgument("The token has characters that no token has: give it as `segrec-serve token` printed it")
    if tls is None and not _is_local(address):
        log.warning("the token travels unencrypted to %s: use TLS", address)
    return (("authorization", f"Bearer {token}"),)


def read_token(path: str) -> str:
    """The token in the file at `path`; empty for an empty path. Raises InvalidArgument."""
    try:
        return Path(path).read_text(encoding="ascii").strip() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise InvalidArgument(f"The token file {path} cannot be read: {reason}") from error


def _is_local(address: str) -> bool:
    """Whether a connection to `address` stays on this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def open_channel(
    address: str, tls: Tls | None, policy: str = PICK_FIRST, interceptors: Sequence[Any] = ()
) -> grpc.Channel:
    """A blocking channel to a target of gRPC's, such as `host:port`; it connects at the first call."""
    if tls is None:
        channel = grpc.insecure_channel(address, options=_options(policy))
    else:
        channel = grpc.secure_channel(address, tls.credentials(), options=_options(policy))
    return grpc.intercept_channel(channel, *interceptors) if interceptors else channel


def open_aio_channel(address: str, tls: Tls | None, policy: str, interceptors: Sequence[Any] = ()) -> grpc.aio.Channel:
    """An asyncio channel, see `open_channel`; call this function inside the running event loop."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=_options(policy), interceptors=interceptors)
    return grpc.aio.secure_channel(address, tls.credentials(), options=_options(policy), interceptors=interceptors)
