"""Traffic as people write and read it; `segrec traffic` and `segrec-train traffic` share these rules.

People write shares `7=95 8=5`, `--shadow 9` and `--guard errors=0.01`, and read sentences.
"""

import getpass
import math
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from segrec.errors import InvalidArgument

NEWEST = 0
"""Stands for the newest good release, instead of a release number. People write `newest`."""
LARGEST_CANARY_PERCENT = 99.0


def percent_of(share: float) -> float:
    """The share of 0 to 1 in percent: the decimal number that a person has written, not its nearest neighbour."""
    return float(f"{share * 100.0:.12g}")


GuardBounds = Mapping[str, float]
"""Bounds above which the canary is removed, by field name: `max_error_share`, `max_degraded_share` and
`max_unconfident_share` (0 to 1), `max_p99_seconds`, `window_seconds`, `min_answer_count`. A bound that is not set has
no entry."""

_RELEASE = re.compile(r"[1-9][0-9]{0,17}")
_SUM_TOLERANCE = 1e-6
"""In percent; accepts thirds written with seven digits."""


class _Bound(NamedTuple):
    field: str
    smallest: float
    largest: float
    values: str


_BOUNDS = {
    "errors": _Bound("max_error_share", 0.0, 1.0, "a share from 0 to 1, such as 0.01"),
    "degraded": _Bound("max_degraded_share", 0.0, 1.0, "a share from 0 to 1, such as 0.02"),
    "unconfident": _Bound("max_unconfident_share", 0.0, 1.0, "a share from 0 to 1, such as 0.5"),
    "p99": _Bound("max_p99_seconds", 1e-6, 315_576_000_000.0, "a time, such as 50ms or 0.05"),
    "window": _Bound("window_seconds", 1.0, 3600.0, "a time from 1 s to 3600 s, such as 30"),
    "min": _Bound("min_answer_count", 1.0, 2.0**62, "a whole number of answers from 1"),
}
_CONDITIONS = ("window", "min")
_SHARE_NOUNS = {
    "max_error_share": "errors",
    "max_degraded_share": "degraded answers",
    "max_unconfident_share": "answers without a confident segment",
}


@dataclass(frozen=True, slots=True)
class TrafficState:
    """Which release answers which users. `stable` 0 is the newest good release; `canary` and `shadow` 0 are none."""

    stable: int = NEWEST
    canary: int = 0
    canary_percent: float = 0.0
    shadow: int = 0
    guard: GuardBounds | None = None


@dataclass(frozen=True, slots=True)
class TrafficChange:
    """A change of the traffic. None leaves a field unchanged; `shadow` 0 and an empty `guard` remove the field.

    `shares` are percent by release.
    """

    shares: Mapping[int, float] | None = None
    shadow: int | None = None
    guard: GuardBounds | None = None

    def applied_to(self, before: TrafficState, active: int) -> TrafficState:
        """The traffic after the change. `active` is the release that answers by default now, 0 without one.

        A shadow stays until its release answers users or `stable` becomes the newest release. A guard stays while its
        canary stays. A shadow given while `stable` is the newest release makes the active release the stable one.
        Raises InvalidArgument.
        """
        stable, canary, percent = before.stable, before.canary, before.canary_percent
        if self.shares is not None:
            stable, canary, percent = _split(self.shares, before.canary, active)
        elif self.shadow and not stable:
            stable = _required_active(active)
        shadow = before.shadow if self.shadow is None else self.shadow
        if self.shadow is None and (not stable or shadow in (stable, canary)):
            shadow = 0
        guard_before = before.guard if canary == before.canary else None
        guard = guard_before if self.guard is None else self.guard or None
        return TrafficState(stable, canary, percent, shadow, guard)


def parse_change(shares: Sequence[str], shadow: str | None, guard: str | None) -> TrafficChange:
    """The change that a command line describes. An absent option (None, or no shares) changes nothing.

    Raises InvalidArgument.
    """
    return TrafficChange(
        _parse_shares(shares) if shares else None,
        None if shadow is None else _parse_shadow(shadow),
        None if guard is None else _parse_guard(guard),
    )


def _parse_shares(texts: Sequence[str]) -> dict[int, float]:
    shares: dict[int, float] = {}
    for text in texts:
        name, _, percent_text = text.partition("=")
        number = NEWEST if name == "newest" else _release(name)
        percent = _decimal(percent_text.removesuffix("%"))
        if number is None or percent is None or not 0 < percent <= 100:
            raise InvalidArgument(f"`{text}` is not a share: write RELEASE=PERCENT, such as 8=5, or newest=100")
        if number in shares:
            raise InvalidArgument(f"`{text}` gives release {name} a second share")
        shares[number] = percent
    return shares


def _parse_shadow(text: str) -> int:
    number = 0 if text == "none" else _release(text)
    if number is None:
        raise InvalidArgument(f"--shadow takes the number of a release or `none`, not `{text}`")
    return number


def _parse_guard(text: str) -> GuardBounds:
    """Bounds such as `errors=0.01,p99=50ms,window=30,min=100`; empty for `none`."""
    bounds: dict[str, float] = {}
    if text == "none":
        return bounds
    for part in map(str.strip, text.split(",")):
        name, _, value = part.partition("=")
        if name not in _BOUNDS:
            raise InvalidArgument(f"--guard does not know `{part}`: it takes NAME=NUMBER with {', '.join(_BOUNDS)}")
        field, smallest, largest, values = _BOUNDS[name]
        number = _time(value) if name in ("p99", "window") else _decimal(value)
        if number is None or not smallest <= number <= largest or (name == "min" and number % 1):
            raise InvalidArgument(f"--guard cannot use `{part}`: {name} takes {values}")
        if field in bounds:
            raise InvalidArgument(f"--guard has two values for {name}")
        bounds[field] = int(number) if name == "min" else number
    if bounds.keys() <= {_BOUNDS[name].field for name in _CONDITIONS}:
        raise InvalidArgument("--guard needs one bound at least: errors, degraded, unconfident or p99")
    return bounds


def _release(text: str) -> int | None:
    return int(text) if _RELEASE.fullmatch(text) else None


def _decimal(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _time(text: str) -> float | None:
    """Seconds of a time that ends in `ms`, in `s` or without a unit."""
    if text.endswith("ms"):
        milliseconds = _decimal(text.removesuffix("ms"))
        return None if milliseconds is None else milliseconds / 1000
    return _decimal(text.removesuffix("s"))


def _split(shares: Mapping[int, float], canary_before: int, active: int) -> tuple[int, int, float]:
    """The stable release, the canary and the canary's percent."""
    if len(shares) == 1:
        [(canary, percent)] = shares.items()
        if percent == 100:
            return canary, 0, 0.0
        stable = _beside(canary, percent, active)
    else:
        _check_two(shares)
        stable = max(shares, key=shares.__getitem__)
        # The active release stays stable beside its canary and beside a newer release, whatever their shares are.
        is_equal = shares[stable] == shares.get(active)
        if active in shares and (is_equal or stable == canary_before or stable > active):
            stable = active
        [canary] = shares.keys() - {stable}
    if shares[canary] > LARGEST_CANARY_PERCENT:
        raise InvalidArgument(
            f"Release {canary} would be the canary of release {stable}, and a canary gets at most "
            f"{LARGEST_CANARY_PERCENT:g} % of the users: give it less, or 100 to make it the stable release"
        )
    return stable, canary, shares[canary]


def _beside(number: int, percent: float, active: int) -> int:
    """The release that answers the other users when the command names one share."""
    if number == NEWEST:
        raise InvalidArgument("`newest` takes all users: give it 100, or name two releases by number")
    if number == active:
        rest = f"{100 - percent:g}"
        raise InvalidArgument(f"Name the release that answers the other {rest} %: {number}={percent:g} OTHER={rest}")
    return _required_active(active)


def _check_two(shares: Mapping[int, float]) -> None:
    if len(shares) != 2 or NEWEST in shares:
        raise InvalidArgument("Give one release 100, or two releases by number their shares, such as 7=95 8=5")
    total = sum(shares.values())
    if abs(total - 100) > _SUM_TOLERANCE:
        raise InvalidArgument(f"The shares sum to {total:.9g}, and must sum to 100")


def _required_active(active: int) -> int:
    if not active:
        raise InvalidArgument("No release is active: give one release 100 first")
    return active


def notation(state: TrafficState) -> str:
    """The traffic as people write it, such as `7=95 8=5, shadow 9`."""
    shares = f"{state.stable or 'newest'}={100 - state.canary_percent:g}"
    if state.canary:
        shares += f" {state.canary}={state.canary_percent:g}"
    return f"{shares}, shadow {state.shadow}" if state.shadow else shares


def sentences(state: TrafficState) -> list[str]:
    """Sentences that say which release answers which users, what the shadow does, and when the guard acts."""
    lines = [_answering(state)]
    if state.shadow:
        lines.append(f"Release {state.shadow} is the shadow: computed and compared, never returned.")
    if state.guard:
        lines.append(f"The guard takes release {state.canary} out {_limits(state.guard)}.")
    return lines


def _answering(state: TrafficState) -> str:
    if not state.stable:
        return "The newest good release answers everyone; the next published release takes its place at once."
    if not state.canary:
        return f"Release {state.stable} answers everyone; a newly published release stands by until it gets a share."
    return (
        f"Release {state.canary} answers {state.canary_percent:g} % of the users, "
        f"release {state.stable} answers the others."
    )


def _limits(guard: GuardBounds) -> str:
    limits = [f"{guard[field] * 100:g} % {answers}" for field, answers in _SHARE_NOUNS.items() if field in guard]
    if "max_p99_seconds" in guard:
        limits.append(f"a p99 of {guard['max_p99_seconds'] * 1000:g} ms")
    window, count = guard["window_seconds"], guard["min_answer_count"]
    return f"above {' or '.join(limits)} over {window:g} s of {count:,} answers or more"


def origin_sentences(previous: Sequence[int], changed_time: datetime | None, changed_by: str, reason: str) -> list[str]:
    """Which releases were stable before, the latest first, and who set the traffic in force, when (UTC) and why."""
    lines = [f"Stable before, the latest first: {', '.join(map(str, previous))}."] if previous else []
    if changed_time:
        why = f", because: {reason}" if reason else ""
        lines.append(f"Set by {changed_by} at {changed_time:%Y-%m-%d %H:%M:%S} UTC{why}")
    return lines


def user_at_host() -> str:
    """The default author of a change, such as `anna@laptop`."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return f"somebody@{socket.gethostname()}"
