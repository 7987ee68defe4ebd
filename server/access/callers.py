"""Callers: their names, roles, credentials and quotas, from the access file.

    [[callers]]
    name = "shop"
    roles = ["read", "record"]
    token_sha256 = ["…"]                     # written by `segrec-serve token shop read record --access-file FILE`
    certificates = ["shop.example.com"]      # common or alternative name of a client certificate, with mutual TLS
    expires = 2027-01-01T00:00:00Z
    calls_per_second = 500
    events_per_second = 5000

Everything but name, roles and one of the credentials can be left out. The file holds hashes, not tokens. Tokens are
random and long, so plain SHA-256 is enough: nobody can try them all.
"""

import hashlib
import tomllib
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import AwareDatetime, Field, StringConstraints, ValidationError, model_validator

from server.access.quota import TokenBucket
from server.access.roles import Role
from server.core.errors import QuotaExceeded, SetupError
from server.core.frozen_model import FrozenModel

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Entry(FrozenModel):
    """A caller in the access file."""

    name: Name
    roles: tuple[Role, ...]
    token_sha256: tuple[Hash, ...] = ()
    certificates: tuple[str, ...] = ()
    expires: AwareDatetime | None = None
    calls_per_second: Rate | None = None
    events_per_second: Rate | None = None

    @model_validator(mode="after")
    def _has_credentials(self) -> Self:
        if not self.token_sha256 and not self.certificates:
            raise ValueError(f"{self.name} has neither token_sha256 nor certificates, so nobody could be this caller")
        return self


class _File(FrozenModel):
    callers: tuple[Entry, ...]


class Caller:
    """One caller with its quotas. `clock` gives seconds and never goes back."""

    def __init__(
        self,
        name: str,
        roles: frozenset[Role],
        clock: Callable[[], float],
        calls_per_second: float | None = None,
        events_per_second: float | None = None,
        expires: datetime | None = None,
    ) -> None:
        self.name = name
        """Name in the access file; empty for callers without credentials, at servers that ask for none."""
        self.roles = roles
        self.expires = expires
        self._calls = TokenBucket(calls_per_second, clock) if calls_per_second else None
        self._events = TokenBucket(events_per_second, clock) if events_per_second else None

    def take_call(self) -> None:
        """Count a call. Raises `QuotaExceeded` beyond `calls_per_second`."""
        wait_seconds = self.call_wait_seconds()
        if wait_seconds:
            raise QuotaExceeded(f"{self.name} makes more calls than its quota allows: wait", retry_seconds=wait_seconds)

    def call_wait_seconds(self) -> float:
        """Count a call and return 0, or count none and return the seconds to wait before it is allowed."""
        return self._calls.take() if self._calls else 0.0

    def take_events(self, count: int) -> None:
        """Count events to be recorded. Raises `QuotaExceeded` beyond `events_per_second`."""
        wait_seconds = self._events.take(count) if self._events else 0.0
        if wait_seconds:
            raise QuotaExceeded(
                f"{self.name} records more events than its quota allows: wait", retry_seconds=wait_seconds
            )

    def continue_quotas(self, earlier: "Caller") -> None:
        """Go on with the quotas of this caller before the file was read again, where they are the same."""
        for name in ("_calls", "_events"):
            ours, theirs = getattr(self, name), getattr(earlier, name)
            if ours and theirs and ours.rate == theirs.rate:
                setattr(self, name, theirs)


class Callers:
    """The callers of an access file, by name and by credential."""

    def __init__(self, entries: tuple[Entry, ...], clock: Callable[[], float]) -> None:
        self.by_name = {
            entry.name: Caller(
                entry.name,
                frozenset(entry.roles),
                clock,
                entry.calls_per_second,
                entry.events_per_second,
                entry.expires,
            )
            for entry in entries
        }
        self._by_token = {digest: self.by_name[entry.name] for entry in entries for digest in entry.token_sha256}
        self._by_certificate = {name: self.by_name[entry.name] for entry in entries for name in entry.certificates}
        self.has_tokens = bool(self._by_token)

    @classmethod
    def read(cls, path: Path, clock: Callable[[], float]) -> Self:
        """Read an access file. Raises `SetupError`."""
        return cls(read_entries(path), clock)

    def with_token(self, token: str) -> Caller | None:
        """The caller with this token."""
        return self._by_token.get(token_hash(token))

    def with_certificate(self, names: list[str]) -> Caller | None:
        """The caller with one of these names in its certificate."""
        return next((self._by_certificate[name] for name in names if name in self._by_certificate), None)


def token_hash(token: str) -> str:
    """What the access file holds of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_entries(path: Path) -> tuple[Entry, ...]:
    """The entries of an access file. Raises `SetupError`."""
    try:
        entries = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).callers
    except OSError as error:
        raise SetupError(f"access_file {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise SetupError(f"access_file {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise SetupError(f"access_file {path} is not TOML: {error}") from error
    for what, values in (
        ("the name", [entry.name for entry in entries]),
        ("a hash of token_sha256", [digest for entry in entries for digest in entry.token_sha256]),
        ("the certificate", [name for entry in entries for name in entry.certificates]),
    ):
        value, count = next(iter(Counter(values).most_common(1)), ("", 0))
        if count > 1:
            raise SetupError(f"access_file {path} has {what} {value[:64]!r} twice: each caller has its own")
    return entries
