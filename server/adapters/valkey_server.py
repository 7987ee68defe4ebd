"""The connection to a Valkey or Redis server: time limits, what its settings promise, and its errors in our words."""

import asyncio
import logging
import ssl
from typing import cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004 the library's name
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
)

from server.core.errors import SetupError

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 1.0
CONNECTION_WAIT_SECONDS = 1.0
"""Longest wait for a free connection of the pool."""
CONNECTIONS_MAX = 32
_UNKNOWN = "unknown"

ERASURE_NOTE = (
    "Valkey's append-only file holds the erased events until its next rewrite (`BGREWRITEAOF`, or by itself when it "
    "has grown), and its snapshots and replicas until their next"
)
"""What the server keeps of an erased user, and until when."""


def connection_pool(url: str) -> BlockingConnectionPool:
    """The connections to `redis://`, `rediss://` (TLS) or `unix://`. Raises `SetupError` for an invalid URL.

    A connection that has died is made again once; a call that has run out of time is not repeated.
    """
    try:
        return BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS_MAX,
            timeout=CONNECTION_WAIT_SECONDS,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(ConstantBackoff(0.02), 1, (ConnectionError,)),
        )
    except ValueError:  # its text may show the password
        raise SetupError(
            "the URL of the history store is not valid; write redis://[[user]:password@]host:port[/database], or "
            "rediss:// with ?ssl_ca_certs=FILE for TLS"
        ) from None


def address_of(pool: BlockingConnectionPool) -> str:
    """Where the server is, for messages: without user name and password."""
    where = pool.connection_kwargs
    return str(where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}")


async def check_settings(client: Redis, address: str) -> None:
    """Warn of settings with which acknowledged events can be lost in a crash.

    Raises `SetupError` for a server that evicts keys when its memory is full, and RedisError.
    """
    memory = await client.info("memory")
    persistence = await client.info("persistence")
    policy, limit = memory.get("maxmemory_policy", _UNKNOWN), int(memory.get("maxmemory", 0))
    if limit and policy != "noeviction":
        raise SetupError(
            f"the history store at {address} evicts keys when its {limit:,} bytes are full (maxmemory-policy "
            f"{policy}), so acknowledged histories would be lost; set `maxmemory-policy noeviction` there"
        )
    if not persistence.get("aof_enabled"):
        log.warning(
            "the history store at %s has no append-only file, so a crash loses events that it has acknowledged; "
            "set `appendonly yes` and `appendfsync always` there",
            address,
        )
        return
    try:
        appendfsync = cast("dict[str, str]", await client.config_get("appendfsync")).get("appendfsync", _UNKNOWN)
    except ResponseError:  # CONFIG is renamed or not allowed, as in many hosted servers
        appendfsync = _UNKNOWN
    if appendfsync == _UNKNOWN:
        log.warning(
            "the history store at %s does not tell its appendfsync: unless it is `always`, a crash of its machine "
            "loses events that it has acknowledged; allow CONFIG GET to this user, or see to it",
            address,
        )
    elif appendfsync != "always":
        log.warning(
            "the history store at %s has appendfsync %s, so a crash of its machine loses the events of the last "
            "seconds that it has acknowledged; set `appendfsync always` there",
            address,
            appendfsync,
        )


def explain(error: Exception, address: str) -> str:
    """What is wrong with the server and what to do, in one sentence."""
    where, what = f"the history store at {address}", f"{type(error).__name__}: {error}"
    cause = error.__cause__ or error.__context__
    if isinstance(error, AuthenticationError):
        return f"{where} refuses the user name or password of its URL"
    if isinstance(error, NoPermissionError):
        return f"{where} does not allow a command to the user of its URL ({error}); allow the user the keys segrec:*"
    if isinstance(error, OutOfMemoryError):
        return f"{where} is full; raise its maxmemory"
    if isinstance(error, ReadOnlyError):
        return f"{where} is a replica, which takes no writes; give the address of its primary"
    if isinstance(error, ResponseError):
        return f"{where} answers with an error ({error}); its log may say more"
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return f"{where} did not answer within {TIMEOUT_SECONDS:g} s; check its load and the network"
    if isinstance(error, ssl.SSLError) or isinstance(cause, ssl.SSLError) or "SSL" in str(error):
        return f"{where} is not trusted or speaks no TLS ({what}); name its root certificates by ?ssl_ca_certs=FILE"
    if "No connection available" in str(error):
        return f"all {CONNECTIONS_MAX} connections to {where} were in use for {CONNECTION_WAIT_SECONDS:g} s; try again"
    if isinstance(cause, ConnectionRefusedError) or "refused" in str(error).lower():
        return f"{where} refuses connections; check that it runs there"
    if isinstance(error, (RedisError, OSError)):
        return f"{where} cannot be reached ({what}); check that it runs and can be reached"
    return f"{where} failed ({what})"
