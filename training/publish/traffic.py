"""Which release answers whom, as it is asked for at the command line, and the way back."""

import getpass
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from server.core.errors import DamagedRelease, InvalidArgument
from server.core.repository.layout import MODEL_NAME, RELEASE_NAME
from server.core.repository.read import read_manifest, read_release
from server.core.repository.traffic import Guard, Traffic, change_traffic, rolled_back
from training.errors import ConfigError, PublishError
from training.repository import find_release, newest_release, release_numbers

NEWEST = 0
"""In the place of a number: whichever good release is the newest."""


@dataclass(frozen=True, slots=True)
class TrafficChange:
    """What shall change. `shares` in percent by release; None leaves a thing as it is, `shadow` 0 takes it away.

    A guard stays with its canary unless another one is given or `guard` is False, which takes it away.
    """

    shares: Mapping[int, float] | None = None
    shadow: int | None = None
    guard: Guard | bool | None = None


def this_person() -> str:
    """Who is at work, as `user@host`."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def set_traffic(repository: Path, wanted: TrafficChange, who: str, reason: str = "") -> Traffic:
    """Have this in force; returns it.

    Raises ConfigError for shares that do not fit together, PublishError for a release that is not there or a
    repository that cannot be written, DamagedRelease for a release that does not pass its checks.
    """

    def change(before: Traffic) -> Traffic:
        after = _changed(_with_answering_named(repository, before), wanted)
        for number in sorted({after.stable, after.canary, after.shadow} - {NEWEST}):
            find_release(repository, number)
        return after

    try:
        return change_traffic(repository, change, "traffic", who, reason)
    except InvalidArgument as error:
        raise ConfigError(f"This traffic cannot be: {error}.") from error
    except OSError as error:
        raise _unwritable(repository, error) from error


def roll_back(repository: Path, who: str, reason: str = "") -> tuple[Traffic, str]:
    """Take the last change back; returns what is in force now, and a sentence of what was done.

    Raises NothingToRollBack where no earlier release could answer, and PublishError as `set_traffic`.
    """
    summary = ""

    def change(before: Traffic) -> Traffic:
        nonlocal summary
        after, summary = _one_back(repository, before)
        return after

    try:
        return change_traffic(repository, change, "rollback", who, reason), summary
    except OSError as error:
        raise _unwritable(repository, error) from error


def goal_of_roll_back(repository: Path, before: Traffic) -> int:
    """The release that a roll-back would have answer in the place of the stable one. Raises NothingToRollBack."""
    return _one_back(repository, before.with_answering())[0].stable


def readable(repository: Path) -> list[int]:
    """Numbers of the releases whose manifest can be read, ascending: a quick look, without their other files."""
    found = []
    for number in release_numbers(repository):
        with suppress(DamagedRelease):
            read_manifest(repository / MODEL_NAME / str(number))
            found.append(number)
    return found


def _one_back(repository: Path, before: Traffic) -> tuple[Traffic, str]:
    """One step back, to a release that passes its checks: only those are read whole that could be the one."""
    good = readable(repository)
    if not before.stable:
        newest = newest_release(repository)
        good = [number for number in good if newest and number <= newest.number]
    while True:
        after, summary = rolled_back(before, good)
        if after.stable == before.stable or _is_good(repository, after.stable):
            return after, summary
        good.remove(after.stable)


def _is_good(repository: Path, number: int) -> bool:
    try:
        read_release(repository / MODEL_NAME / str(number))
    except DamagedRelease:
        return False
    return True


def _with_answering_named(repository: Path, before: Traffic) -> Traffic:
    """While the newest release answers, its number is what a share is beside, and what a roll-back goes to."""
    newest = None if before.stable else newest_release(repository)
    return before.model_copy(update={"stable": newest.number}) if newest else before


def _changed(before: Traffic, wanted: TrafficChange) -> Traffic:
    stable, canary, percent = before.stable, before.canary, before.canary_percent
    if wanted.shares is not None:
        stable, canary, percent = _sides(wanted.shares, before)
    shadow = before.shadow if wanted.shadow is None else wanted.shadow
    if wanted.shadow is None and (shadow in (stable, canary) or stable == NEWEST):
        shadow = 0
    guard = before.guard if wanted.guard is None and canary == before.canary else None
    if isinstance(wanted.guard, Guard):
        guard = wanted.guard
    return before.with_stable(stable).with_answering(canary, percent, shadow, guard)


def _sides(shares: Mapping[int, float], before: Traffic) -> tuple[int, int, float]:
    """The stable release, the canary and its share. Raises ConfigError."""
    if len(shares) == 1:
        [(number, percent)] = shares.items()
        if percent == 100.0:
            return number, 0, 0.0
        if number in (before.stable, NEWEST) or not before.stable:
            raise ConfigError(_ask_for_rest(number, percent))
        return before.stable, number, percent
    if len(shares) != 2 or NEWEST in shares:
        raise ConfigError("Give one release 100, or two releases by number their shares, as in `7=95 8=5`.")
    if abs(sum(shares.values()) - 100.0) > 1e-9:
        raise ConfigError(f"The shares sum to {sum(shares.values()):g}, and must sum to 100.")
    stable, canary = sorted(shares, key=lambda number: (-shares[number], number != before.stable))
    if canary == before.stable and (stable == before.canary or stable > before.stable):
        stable, canary = canary, stable  # who is stable stays so beside its canary, or beside a newer release
    return stable, canary, shares[canary]


def _ask_for_rest(number: int, percent: float) -> str:
    rest = f"{100.0 - percent:g}"
    if number == NEWEST:
        return "`newest` takes all users: give it 100, or name two releases by number."
    return f"Say who answers the other {rest} %, as in `{number}={percent:g} OTHER={rest}`."


def _unwritable(repository: Path, error: OSError) -> PublishError:
    return PublishError(f"The traffic of {repository} cannot be changed: {error.strerror}.")


def parse_shares(texts: Sequence[str]) -> dict[int, float]:
    """Shares in percent by release of texts such as `8=5` or `newest=100`. Raises ConfigError."""
    shares: dict[int, float] = {}
    for text in texts:
        name, _, percent = text.partition("=")
        number = NEWEST if name == "newest" else _whole(name)
        share = _decimal(percent)
        if number is None or share is None or not 0 < share <= 100:
            raise ConfigError(f"`{text}` is no share of a release; write `8=5`: release 8 for 5 % of the users.")
        if number in shares:
            raise ConfigError(f"Release {name} is given two shares.")
        shares[number] = share
    return shares


def parse_shadow(text: str) -> int:
    """The number of a release, 0 for `none`. Raises ConfigError."""
    number = NEWEST if text == "none" else _whole(text)
    if number is None:
        raise ConfigError(f"--shadow is the number of a release or `none`, not `{text}`.")
    return number


_GUARD_KEYS = {
    "errors": "max_error_share",
    "degraded": "max_degraded_share",
    "unconfident": "max_unconfident_share",
    "p99": "max_p99_seconds",
    "window": "window_seconds",
    "min": "min_answer_count",
}
_SHORT_TIME = 0.001


def parse_guard(text: str) -> Guard | bool:
    """Bounds such as `errors=0.01,p99=50ms,window=30,min=100`; False for `none`. Raises ConfigError."""
    if text == "none":
        return False
    fields: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        number = _decimal_of(name, value)
        if name not in _GUARD_KEYS or number is None:
            known = ", ".join(_GUARD_KEYS)
            raise ConfigError(f"--guard does not know `{part}`; it takes NAME=NUMBER, and the names are {known}.")
        fields[_GUARD_KEYS[name]] = number
    try:
        return Guard.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(f"--guard {text}: {_first(error)}.") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    name = next((short for short, field in _GUARD_KEYS.items() if field == where), "")
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def _decimal_of(name: str, value: str) -> float | None:
    """A number; a time in seconds, written with `ms` or `s` or without."""
    if name in ("p99", "window"):
        if value.endswith("ms"):
            number = _decimal(value.removesuffix("ms"))
            return None if number is None else number * _SHORT_TIME
        value = value.removesuffix("s")
    return _decimal(value)


def _whole(text: str) -> int | None:
    return int(text) if RELEASE_NAME.fullmatch(text) else None


def _decimal(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
