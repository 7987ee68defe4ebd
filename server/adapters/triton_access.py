"""How Triton's gRPC is reached: in clear or by TLS, and with the secret that its `--grpc-restricted-protocol` asks for.

Whoever reaches Triton can have it run a model, which is code. NVIDIA's container is therefore started with

    --grpc-restricted-protocol=PROTOCOLS:segrec=SECRET

where PROTOCOLS are `RESTRICTED_PROTOCOLS`. The embedded Triton needs no secret: only its own
user reaches its socket.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from server.core.errors import SetupError
from server.watched_files import WatchedFiles

logger = logging.getLogger(__name__)

RESTRICTED_PROTOCOLS = "model-repository,model-config,shared-memory,statistics,trace,logging,inference"
"""Parts of Triton's API that need the secret: all but health and metadata."""
SECRET_HEADER = "triton-grpc-protocol-segrec"  # noqa: S105  the name of a header
LONGEST_CALL_SECONDS = 150.0
"""So long an earlier connection stays open for its calls: longer than any call to Triton, which is never cancelled."""
_CLEAR: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TritonTls:
    """PEM files. `root_ca` is the authority of Triton's certificate; the other two, both or none, show who calls."""

    root_ca: Path
    certificate: Path | None = None
    key: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are given."""
        return tuple(path for path in (self.root_ca, self.certificate, self.key) if path)

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises `SetupError` when a file cannot be read."""
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.root_ca),
            private_key=_read(self.key) if self.key else None,
            certificate_chain=_read(self.certificate) if self.certificate else None,
        )


class TritonSecret:
    """The metadata with the secret in a file, which is read again when it changes; none without a file.

    Raises `SetupError` when the file cannot be used. A file that cannot be used later leaves the secret as it was.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._metadata = _CLEAR if path is None else _secret(path)
        self._files = WatchedFiles([path] if path else [])

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata for a call to Triton."""
        if self._path is not None and self._files.have_changed():
            try:
                self._metadata = _secret(self._path)
            except SetupError as error:
                logger.error("%s; the earlier secret stays in use", error)
        return self._metadata


@dataclass(frozen=True, slots=True)
class TritonAccess:
    """TLS, or None for a connection in clear, and the secret."""

    tls: TritonTls | None = None
    secret: TritonSecret = field(default_factory=TritonSecret)

    def channel(self, address: str, options: Sequence[tuple[str, int]]) -> grpc.aio.Channel:
        """A channel to `HOST:PORT` or `unix:PATH`. Raises `SetupError` when a certificate or key cannot be read."""
        if self.tls is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, self.tls.credentials(), options=options)


class TritonConnection:
    """A connection to Triton that is made anew when a certificate or key has changed.

    Use it in an event loop. Raises `SetupError` when a file cannot be read. Files that cannot be read later leave the
    connection as it was.
    """

    def __init__(self, address: str, access: TritonAccess, options: Sequence[tuple[str, int]]) -> None:
        self._address, self._access, self._options = address, access, options
        self._files = WatchedFiles(access.tls.files if access.tls else ())
        self._closing: set[asyncio.Task[None]] = set()
        self._connect()

    @property
    def stub(self) -> Any:
        """The methods of Triton's gRPC service, for the next call."""
        if self._access.tls is not None and self._files.have_changed():
            earlier = self._channel
            try:
                self._connect()
            except SetupError as error:
                logger.error("%s; the earlier connection to Triton stays in use", error)
            else:
                logger.info("Triton's certificates or keys have changed: connecting anew")
                task = asyncio.create_task(_close_later(earlier))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        return self._stub

    def _connect(self) -> None:
        self._channel = self._access.channel(self._address, self._options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Close this connection and the earlier ones, with all calls in flight."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close()


async def _close_later(channel: grpc.aio.Channel) -> None:
    try:
        await asyncio.sleep(LONGEST_CALL_SECONDS)
    finally:
        await channel.close()


def explained(details: str | None) -> str:
    """The error text of a call to Triton, with what to do where Triton refused the secret."""
    text = details or "no reason is given"
    return f"{text}: set triton_secret_file to a file with Triton's secret" if SECRET_HEADER in text else text


def _secret(path: Path) -> tuple[tuple[str, str], ...]:
    try:
        secret = _read(path).decode("ascii").strip()
    except UnicodeDecodeError:
        secret = ""
    if not secret.isprintable() or not secret or " " in secret:
        raise SetupError(
            f"triton_secret_file {path} must hold one word of ASCII letters, such as `openssl rand -hex 24`"
        )
    return ((SECRET_HEADER, secret),)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from error
