"""Admits calls: by role and quota with an access file, by where they come from without one.

Without an access file, callers on this machine may do everything at an address of loopback. All others may read, and
with mutual TLS also record. Addresses of loopback other than 127.0.0.1 and ::1 are not this machine: Istio's sidecar,
for instance, passes calls of the whole mesh on from 127.0.0.6.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from datetime import UTC
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from server.access.callers import Caller, Callers
from server.access.roles import ROLES, ROLES_OF_METHOD, Role
from server.core.errors import (
    ExpiredCredentials,
    NotAllowed,
    NotAuthenticated,
    QuotaExceeded,
    SegrecError,
    SetupError,
    WrongCredentials,
)
from server.watched_files import WatchedFiles

log = logging.getLogger(__name__)

METADATA_KEY = "authorization"
_PREFIX = "Bearer "
_THIS_MACHINE = frozenset({"127.0.0.1", "::1"})
_USUAL_LOCAL_PEERS = ("ipv4:127.0.0.1:", "ipv6:%5B::1%5D:", "unix:")
_HINT = "give a token with --token-file, or a client certificate that the access file names"

T = TypeVar("T")
Observer = Callable[[str, str], None]
"""Receives the name of a caller, empty for an unknown one, and `ADMITTED` or the reason of its refusal."""

_ANYBODY = Caller("", frozenset(), time.monotonic)
_current: ContextVar[Caller] = ContextVar("caller", default=_ANYBODY)


def current_caller() -> Caller:
    """The caller of the RPC that this task answers."""
    return _current.get()


class AccessFile:
    """The callers of a file, which is read again when it changes. Raises `SetupError` when it cannot be used.

    A file that cannot be used later leaves the callers as they were. `clock` is the time of day, in seconds since 1970.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.time, quota_clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._quota_clock = quota_clock
        self.clock = clock
        self._files = WatchedFiles([path])
        self._callers = Callers.read(path, quota_clock)

    @property
    def callers(self) -> Callers:
        """The callers in force."""
        if self._files.have_changed():
            self._read_again()
        return self._callers

    def _read_again(self) -> None:
        try:
            callers = Callers.read(self._path, self._quota_clock)
        except SetupError as error:
            log.error("%s; the callers that were read before stay in force", error)
            return
        for name, caller in callers.by_name.items():
            if earlier := self._callers.by_name.get(name):
                caller.continue_quotas(earlier)
        self._callers = callers
        log.info("access_file %s was read again: %d callers", self._path, len(callers.by_name))


class AccessControl:
    """Admits the calls at one address."""

    def __init__(
        self, access_file: AccessFile | None, address: str, observe: Observer, *, has_mutual_tls: bool = False
    ) -> None:
        self._file = access_file
        self._is_loopback = is_loopback(address)
        self._observe = observe
        self._local = Caller("", frozenset(ROLES), time.monotonic)
        known: frozenset[Role] = frozenset({"read", "record"} if has_mutual_tls else {"read"})
        self._other = Caller("", known, time.monotonic)

    def admit(self, method: str, context: Any) -> Caller:
        """The caller of a unary RPC, which `current_caller` then returns in this task; the call counts for its quota.

        `method` is a key of `ROLES_OF_METHOD`. Raises `NotAuthenticated`, `NotAllowed` or `QuotaExceeded`.
        """
        caller = self.admit_stream(method, context)
        try:
            caller.take_call()
        except QuotaExceeded as error:
            self._observe(caller.name, error.reason)
            raise
        return caller

    def admit_stream(self, method: str, context: Any) -> Caller:
        """`admit` for a stream, whose messages count by themselves in `paced`. Never raises `QuotaExceeded`."""
        roles, caller = ROLES_OF_METHOD[method], self._other
        try:
            caller = self._caller(context)
            if caller.roles.isdisjoint(roles):
                raise NotAllowed(self._refusal(method, roles, caller))
        except SegrecError as error:
            self._observe(caller.name, error.reason)
            raise
        self._observe(caller.name, "ADMITTED")
        _current.set(caller)
        return caller

    async def paced(self, requests: AsyncIterator[T], method: str, context: Any) -> AsyncIterator[T]:
        """The messages of a stream, each counted as a call: beyond the quota they wait, and so does the caller.

        A caller whose credentials expire or are taken away is refused at its next message.
        """
        async for request in requests:
            caller = self.admit_stream(method, context)
            while wait_seconds := caller.call_wait_seconds():  # noqa: ASYNC110  other streams share the quota
                await asyncio.sleep(wait_seconds)
            yield request

    def _caller(self, context: Any) -> Caller:
        if self._file is None:
            return self._local if self._is_loopback and is_local(context.peer()) else self._other
        callers = self._file.callers
        token = sent_token(context.invocation_metadata() or ())
        names = certificate_names(context.auth_context())
        caller = callers.with_certificate(names) if token is None else callers.with_token(token)
        if caller is None:
            raise _unknown(token, names)
        if caller.expires is not None and self._file.clock() >= caller.expires.timestamp():
            when = caller.expires.astimezone(UTC).isoformat(timespec="seconds")
            raise ExpiredCredentials(
                f"the credentials of {caller.name} expired at {when}: have the access file renewed"
            )
        return caller

    def _refusal(self, method: str, roles: Sequence[Role], caller: Caller) -> str:
        name, role = method.rpartition("/")[2], " or ".join(roles)
        if self._file is None:
            return (
                f"{name} needs the role {role}, which callers without credentials have only on the server's machine, "
                "at an address of loopback: run the command there, or set access_file in the server's configuration"
            )
        return f"{name} needs the role {role}, which {caller.name} does not have: add it in the server's access file"


def _unknown(token: str | None, names: list[str]) -> NotAuthenticated:
    if token is not None:
        return WrongCredentials("the token is not one of the server's access file: check the file of --token-file")
    if names:
        return WrongCredentials("the access file names no caller with this client certificate: add its name there")
    return NotAuthenticated(f"this server answers only callers of its access file: {_HINT}")


def sent_token(metadata: Any) -> str | None:
    """The bearer token in the metadata of a call; None without one."""
    for key, value in metadata:
        if key == METADATA_KEY and isinstance(value, str) and value.startswith(_PREFIX):
            return value.removeprefix(_PREFIX)
    return None


def certificate_names(auth_context: Any) -> list[str]:
    """Alternative names and common name of the client certificate; empty without one."""
    keys = ("x509_subject_alternative_name", "x509_common_name")
    return [name.decode(errors="replace") for key in keys for name in auth_context.get(key, ())]


def is_loopback(address: str) -> bool:
    """Whether `HOST:PORT` can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_local(peer: str) -> bool:
    """Whether a peer in gRPC's notation, such as `ipv4:127.0.0.1:5000`, is a process of this machine."""
    if peer.startswith(_USUAL_LOCAL_PEERS):
        return True
    try:
        address = ip_address(unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address) in _THIS_MACHINE
