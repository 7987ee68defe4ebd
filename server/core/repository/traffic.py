"""`traffic.json` of the model repository: which release answers which users. All servers follow this file.

A change holds a lock, replaces the file by rename, and adds a line to the audit log.
"""

import errno
import fcntl
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from time import monotonic, sleep
from typing import IO, Any, Self

from pydantic import Field, ValidationError, model_validator

from server.core.errors import DamagedTraffic, InvalidArgument, NothingToRollBack, TrafficChanged
from server.core.frozen_model import FrozenModel
from server.core.repository.audit import AuditEntry, AuditKind, append_audit, read_audit

TRAFFIC = "traffic.json"
PREVIOUS_MAX = 10
"""Largest number of earlier stable releases to which the traffic can roll back."""

LOCK_SECONDS = 30.0
"""Default of the longest wait for another program that changes the traffic or deletes releases."""

_LOCK = ".traffic.lock"
_LOCK_POLL_SECONDS = 0.05
_LONGEST_HOLDER = 300
_KEY_BYTES = 16
_LARGEST_HASH = 2.0**64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Guard(FrozenModel, allow_inf_nan=False):
    """Bounds beyond which the server takes a canary out; None is no bound. See the API's `Guard`."""

    max_error_share: float | None = Field(default=None, ge=0, le=1)
    max_degraded_share: float | None = Field(default=None, ge=0, le=1)
    max_unconfident_share: float | None = Field(default=None, ge=0, le=1)
    max_p99_seconds: float | None = Field(default=None, gt=0)
    window_seconds: float = Field(default=30.0, ge=1, le=3600)
    min_answer_count: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        bounds = (self.max_error_share, self.max_degraded_share, self.max_unconfident_share, self.max_p99_seconds)
        if all(bound is None for bound in bounds):
            raise ValueError("a guard needs at least one bound")
        return self


class Traffic(FrozenModel, allow_inf_nan=False):
    """Which release answers which users. `stable` 0 is the newest good release; `canary` and `shadow` 0 are none.

    The canary answers `canary_share` (above 0, at most 0.99) of the users. `key` makes the choice of users
    unpredictable; it stays the same when shares change. `previous` are earlier stable releases, the latest first.
    """

    schema_version: int = Field(default=1, ge=1, le=1)
    stable: int = Field(default=0, ge=0, lt=10**18)
    canary: int = Field(default=0, ge=0, lt=10**18)
    canary_share: float = Field(default=0.0, ge=0, le=0.99)
    shadow: int = Field(default=0, ge=0, lt=10**18)
    guard: Guard | None = None
    previous: tuple[int, ...] = Field(default=(), max_length=PREVIOUS_MAX)
    key: str = Field(default="", pattern="^([0-9a-f]{32})?$")
    changed_time: datetime | None = None
    changed_by: str = ""
    reason: str = ""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.canary > 0) != (self.canary_share > 0):
            raise ValueError("a canary and its share go together")
        if (self.canary or self.shadow) and not self.stable:
            raise ValueError("beside a canary or a shadow, the stable release must be named")
        if self.canary and self.canary == self.stable:
            raise ValueError(f"release {self.canary} cannot be the canary of itself")
        if self.shadow and self.shadow in (self.stable, self.canary):
            raise ValueError(f"release {self.shadow} answers already: it cannot be the shadow as well")
        if self.guard and not self.canary:
            raise ValueError("a guard watches a canary, and there is none")
        return self

    @property
    def etag(self) -> str:
        """Another value after each change; `0` while nobody has changed the traffic."""
        if self.changed_time is None:
            return "0"
        return str((self.changed_time - _EPOCH) // timedelta(microseconds=1))

    def check_etag(self, etag: str) -> None:
        """Raises `TrafficChanged` when `etag` is not empty and not the one of this traffic."""
        if etag not in ("", self.etag):
            raise TrafficChanged(
                f"the traffic was changed by {self.changed_by or 'somebody'} since you have read it; nothing was "
                "changed now: see `segrec traffic`, then try again"
            )

    def is_canary_user(self, user_id: str) -> bool:
        """Whether the canary answers this user, by a keyed hash: every server chooses the same users.

        Each canary gets other users; a larger share keeps the users of a smaller share.
        """
        if not self.canary:
            return False
        hashed = self.canary.to_bytes(8, "little") + user_id.encode(errors="surrogatepass")
        digest = blake2b(hashed, digest_size=8, key=bytes.fromhex(self.key)).digest()
        return int.from_bytes(digest, "little") < self.canary_share * _LARGEST_HASH

    def named_releases(self) -> set[int]:
        """The stable, canary and shadow releases, and the release to which a roll-back goes."""
        return {self.stable, self.canary, self.shadow, *self.previous[:1]} - {0}

    def with_stable(self, number: int) -> "Traffic":
        """This traffic with another stable release; the old one becomes the first of `previous`."""
        if number == self.stable:
            return self
        earlier = [release for release in (self.stable, *self.previous) if release not in (0, number)]
        return self.model_copy(update={"stable": number, "previous": tuple(dict.fromkeys(earlier))[:PREVIOUS_MAX]})

    def replaced_by(self, requested: "Traffic", active: int) -> "Traffic":
        """The releases, shares and guard of `requested`, with the `previous` releases of this traffic.

        `active` is the release that answers now (0 for none). A roll-back can go to it even when this traffic names no
        stable release. Raises `InvalidArgument`.
        """
        start = self
        if requested.stable and not self.stable:
            start = self.model_copy(update={"stable": active})
        after = start.with_stable(requested.stable)
        return after.with_answering(requested.canary, requested.canary_share, requested.shadow, requested.guard)

    def with_answering(
        self, canary: int = 0, share: float = 0.0, shadow: int = 0, guard: Guard | None = None
    ) -> "Traffic":
        """This traffic with another canary, shadow and guard. Raises `InvalidArgument`."""
        update = {"canary": canary, "canary_share": share, "shadow": shadow, "guard": guard}
        return validated_traffic(self.model_dump() | update)


def validated_traffic(fields: dict[str, Any]) -> Traffic:
    """A `Traffic` of these fields. Raises `InvalidArgument` with the first problem."""
    try:
        return Traffic.model_validate(fields)
    except ValidationError as error:
        raise InvalidArgument(_first_problem(error), "traffic", reason="TRAFFIC_INVALID") from error


def read_traffic(repository: Path) -> Traffic:
    """The traffic in force; without a file, the newest release for all users. Raises `DamagedTraffic`."""
    path = repository / TRAFFIC
    try:
        return Traffic.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Traffic()
    except ValidationError as error:
        raise DamagedTraffic(f"{path} is damaged ({_first_problem(error)}): {_REMEDY}") from error
    except OSError as error:
        raise DamagedTraffic(f"{path} cannot be read ({error.strerror}): {_REMEDY}") from error


_REMEDY = "set the traffic again with `segrec-train traffic`"


def last_traffic(repository: Path) -> Traffic:
    """The last traffic in the audit log, for a damaged `traffic.json`. Raises OSError."""
    for entry in reversed(read_audit(repository)):
        if "traffic" in entry.details:
            try:
                return Traffic.model_validate(entry.details["traffic"])
            except ValidationError:
                continue
    return Traffic()


def change_traffic(
    repository: Path,
    change: Callable[[Traffic], Traffic],
    what: AuditKind,
    who: str,
    reason: str = "",
    wait_seconds: float = LOCK_SECONDS,
) -> Traffic:
    """Put `change(traffic)` in force and add it to the audit log; returns the new traffic.

    If `traffic.json` is damaged, `change` gets the last traffic of the audit log. Raises the errors of `change`,
    OSError when the repository cannot be written, and BlockingIOError when another program holds the lock for
    `wait_seconds`; after an error the traffic is unchanged.
    """
    with locked_traffic(repository, wait_seconds):
        try:
            before = read_traffic(repository)
        except DamagedTraffic:
            before = last_traffic(repository)
        update = {"changed_time": datetime.now(UTC), "changed_by": who, "reason": reason}
        after = change(before).model_copy(update=update | {"key": before.key or secrets.token_hex(_KEY_BYTES)})
        taken_out = before.canary if after.stable == before.stable else 0
        release = after.canary or taken_out or after.stable
        details = {"traffic": after.model_dump(mode="json"), "before": before.model_dump(mode="json", exclude={"key"})}
        entry = AuditEntry(who=who, what=what, release=release, reason=reason, details=details)
        with _replacing(repository / TRAFFIC, after.model_dump_json(indent=1) + "\n"):
            append_audit(repository, entry)
    return after


def rolled_back(before: Traffic, good_numbers: Sequence[int]) -> tuple[Traffic, str]:
    """The traffic before the latest change, and a sentence for people.

    A canary is taken out. Without a canary, the previous stable release becomes stable again, or else the next older
    release. `good_numbers` are the releases without a known failure; if the traffic names no stable release, the
    newest of them is active. Raises `NothingToRollBack`.
    """
    if before.canary:
        summary = f"Release {before.canary} is no longer the canary; release {before.stable} answers all users."
        return before.with_answering(shadow=before.shadow), summary
    active = before.stable or max(good_numbers, default=0)
    earlier = [number for number in before.previous if number in good_numbers and number != active]
    earlier = earlier or [number for number in sorted(good_numbers, reverse=True) if number < active]
    if not earlier:
        raise NothingToRollBack(
            f"release {active} has no earlier release to roll back to" if active else "there is no release"
        )
    if before.shadow == earlier[0]:
        before = before.with_answering()
    fields = {"stable": earlier[0], "previous": tuple(earlier[1 : 1 + PREVIOUS_MAX])}
    return before.model_copy(update=fields), f"Release {earlier[0]} answers instead of release {active}."


@contextmanager
def locked_traffic(repository: Path, wait_seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock for changes of the traffic and for deleting releases.

    The lock's file names the holder. Raises OSError, and BlockingIOError when the lock is not free within
    `wait_seconds`.
    """
    path, end = repository / _LOCK, monotonic() + wait_seconds
    with path.open("a+") as file:
        while not _try_lock(file):
            if monotonic() >= end:
                file.seek(0)
                holder = file.read(_LONGEST_HOLDER).strip() or "another program"
                raise BlockingIOError(errno.EAGAIN, f"{holder} holds the lock {path} for more than {wait_seconds:g} s")
            sleep(_LOCK_POLL_SECONDS)
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _replacing(path: Path, text: str) -> Iterator[None]:
    """Write the text into a temporary file; replace `path` by it when the block ends without an exception."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield
        temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place, message = ".".join(map(str, first["loc"])), str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
