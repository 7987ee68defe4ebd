"""`segrec traffic` and `segrec rollback`: which release answers whom."""

import argparse
import getpass
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from segrec.cli.exit_codes import OK
from segrec.cli.records import iso_time, json_line, plain_float
from segrec.client import ModelClient
from segrec.errors import InvalidArgument
from segrec.requests import CHANGE_SECONDS
from segrec.v1.model_service_pb2 import (
    Guard,
    ListReleasesResponse,
    ReleaseState,
    Traffic,
    TrafficRecord,
)

NEWEST = "newest"
"""In the place of a release's number: the newest good release, whichever it is."""
_BOUNDS = {"errors": "max_error_share", "degraded": "max_degraded_share", "unconfident": "max_unconfident_share"}
_GUARD_HELP = "errors, degraded, unconfident (shares), p99 (such as 50ms), window (seconds), min (answers)"


class _Change(TypedDict):
    """What `ModelClient.set_traffic` takes."""

    stable: int
    canary: int
    canary_percent: float
    shadow: int
    guard: Guard | None


def traffic(client: ModelClient, options: argparse.Namespace) -> int:
    """Prints the traffic in force; with something to change, changes it before."""
    overview = client.overview()
    if not options.shares and options.shadow is None and options.guard is None:
        _print(overview.traffic, overview.traffic_failure, options)
        return OK
    change = changed(overview, options.shares, options.shadow, options.guard)
    record = client.set_traffic(
        **change,
        reason=options.reason,
        changed_by=options.by or local_name(),
        timeout_seconds=options.timeout or CHANGE_SECONDS,
    )
    _print(record, "", options)
    return OK


def rollback(client: ModelClient, options: argparse.Namespace) -> int:
    """Takes the last change back, and says what that means."""
    timeout_seconds = options.timeout or CHANGE_SECONDS
    answer = client.rollback(
        reason=options.reason, changed_by=options.by or local_name(), timeout_seconds=timeout_seconds
    )
    if options.json:
        print(json_line({"summary": answer.summary} | _record(answer.traffic, "")))
    else:
        print(answer.summary)
    return OK


def changed(overview: ListReleasesResponse, shares: Sequence[str], shadow: int | None, guard: str | None) -> _Change:
    """What shall be in force: what is not said stays, as far as it fits. Raises InvalidArgument."""
    before = overview.traffic.traffic
    stable, canary, percent = _shares(overview, shares) if shares else _in_force(overview)
    if shadow is None:
        shadow = before.shadow_release if before.shadow_release not in (stable, canary) and stable else 0
    elif shadow and not stable:
        stable = _named(_active(overview))
    kept = before.guard if before.HasField("guard") and canary and canary == before.canary_release else None
    chosen = kept if guard is None else guard_of(guard)
    return {"stable": stable, "canary": canary, "canary_percent": percent, "shadow": shadow, "guard": chosen}


def _in_force(overview: ListReleasesResponse) -> tuple[int, int, float]:
    now = overview.traffic.traffic
    return now.stable_release, now.canary_release, now.canary_percent


def _shares(overview: ListReleasesResponse, texts: Sequence[str]) -> tuple[int, int, float]:
    """Stable release, canary, and its share, of shares such as 7=95 8=5; 8=5 alone leaves the rest as it is."""
    shares = _parsed(texts)
    if len(shares) == 1:
        [(number, percent)] = shares.items()
        if percent == 100:
            return number, 0, 0.0
        shares = {_named(_active(overview)): 100 - percent, number: percent}
        if len(shares) == 1:
            raise InvalidArgument(f"Release {number} is the stable one: give it 100, or name another beside it")
    if len(shares) != 2 or abs(sum(shares.values()) - 100) > 1e-6:
        raise InvalidArgument(f"{' '.join(texts)}: give the shares of one or two releases, 100 in all")
    active = _active(overview)
    first = active if active in shares else max(shares, key=lambda number: shares[number])
    [canary] = set(shares) - {first}
    if 0 in shares:
        raise InvalidArgument(f"{NEWEST} takes all traffic or none: beside a canary, name the stable release")
    return first, canary, shares[canary]


def _parsed(texts: Sequence[str]) -> dict[int, float]:
    shares: dict[int, float] = {}
    for text in texts:
        name, _, percent_text = text.partition("=")
        try:
            number, percent = 0 if name == NEWEST else int(name), float(percent_text.removesuffix("%"))
        except ValueError:
            number, percent = -1, 0.0
        if number < 0 or not 0 < percent <= 100 or number in shares or (number == 0) != (name == NEWEST):
            raise InvalidArgument(f"{text}: give RELEASE=PERCENT, such as 8=5, or {NEWEST}=100")
        shares[number] = percent
    return shares


def _active(overview: ListReleasesResponse) -> int:
    """The release that answers by default, 0 where there is none."""
    if overview.traffic.traffic.stable_release:
        return overview.traffic.traffic.stable_release
    active = [one.release for one in overview.releases if one.state == ReleaseState.RELEASE_STATE_ACTIVE]
    return active[0] if active else 0


def _named(active: int) -> int:
    if not active:
        raise InvalidArgument("No release is active: give one release 100 per cent first")
    return active


def guard_of(text: str) -> Guard | None:
    """A guard such as errors=0.01,p99=50ms,window=30; None for `none`. Raises InvalidArgument."""
    if text == "none":
        return None
    guard = Guard()
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            _set_bound(guard, name, value)
        except (ValueError, OverflowError):
            raise InvalidArgument(f"guard {part!r}: give NAME=NUMBER of {_GUARD_HELP}, or none") from None
    return guard


def _set_bound(guard: Guard, name: str, value: str) -> None:
    """Raises ValueError."""
    if name in _BOUNDS:
        setattr(guard, _BOUNDS[name], float(value))
    elif name == "p99":
        guard.max_p99_time.FromNanoseconds(round(_seconds(value) * 1e9))
    elif name == "window":
        guard.window.FromNanoseconds(round(_seconds(value) * 1e9))
    elif name == "min":
        guard.min_answer_count = int(value)
    else:
        raise ValueError


def _seconds(text: str) -> float:
    if text.endswith("ms"):
        return float(text.removesuffix("ms")) / 1000
    return float(text.removesuffix("s"))


def read_token(path: str) -> str:
    """The token in a file; empty where no file is named. Raises InvalidArgument."""
    try:
        return Path(path).read_text(encoding="ascii").strip() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"The token file {path} cannot be read: {error}") from error


def local_name() -> str:
    """Who asks, where nobody says: user@host."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return f"somebody@{socket.gethostname()}"


def _print(record: TrafficRecord, failure: str, options: argparse.Namespace) -> None:
    if options.json:
        print(json_line(_record(record, failure)))
        return
    print("\n".join(_lines(record.traffic)))
    if record.HasField("changed_time"):
        why = f": {record.reason}" if record.reason else ""
        print(f"set {iso_time(record.changed_time)} by {record.changed_by}{why}")
    if record.previous_releases:
        print(f"before: release {', '.join(map(str, record.previous_releases))}")
    if failure:
        print(f"in spite of this: {failure}")


def _lines(traffic: Traffic) -> list[str]:
    stable = f"release {traffic.stable_release}" if traffic.stable_release else "the newest good release"
    lines = [f"stable   {100 - traffic.canary_percent:g} %  {stable}"]
    if traffic.canary_release:
        lines.append(f"canary   {traffic.canary_percent:g} %  release {traffic.canary_release}")
    if traffic.shadow_release:
        lines.append(f"shadow   0 %  release {traffic.shadow_release}")
    if traffic.HasField("guard"):
        bounds = _guard_record(traffic.guard)
        lines.append("guard    " + ", ".join(f"{name} {value:g}" for name, value in bounds.items()))
    return lines


def _guard_record(guard: Guard) -> Mapping[str, float]:
    shares = {name: plain_float(getattr(guard, name)) for name in _BOUNDS.values() if guard.HasField(name)}
    p99 = {"max_p99_seconds": guard.max_p99_time.ToNanoseconds() / 1e9} if guard.HasField("max_p99_time") else {}
    rest = {"window_seconds": guard.window.ToNanoseconds() / 1e9, "min_answer_count": guard.min_answer_count}
    return shares | p99 | rest


def _record(record: TrafficRecord, failure: str) -> dict[str, Any]:
    now = record.traffic
    return {
        "stable_release": now.stable_release,
        "canary_release": now.canary_release,
        "canary_percent": now.canary_percent,
        "shadow_release": now.shadow_release,
        "guard": _guard_record(now.guard) if now.HasField("guard") else None,
        "previous_releases": list(record.previous_releases),
        "changed_time": iso_time(record.changed_time) if record.HasField("changed_time") else None,
        "changed_by": record.changed_by,
        "reason": record.reason,
        "failure": failure,
    }


def _shadow(text: str) -> int:
    return 0 if text == "none" else int(text)


def add_commands(parsers: Sequence[argparse.ArgumentParser]) -> None:
    """Gives the parsers of `traffic` and `rollback` their options."""
    for parser in parsers:
        parser.add_argument("--reason", default="", metavar="TEXT", help="why, for the audit log")
        parser.add_argument("--by", default="", metavar="NAME", help="who, for the audit log; default user@host")
        parser.add_argument(
            "--token-file", default="", metavar="FILE", help="the server's token; default $SEGREC_TOKEN_FILE"
        )
    shares = parsers[0]
    shares.add_argument("shares", nargs="*", metavar="RELEASE=PERCENT", help=f"such as 7=95 8=5, or {NEWEST}=100")
    shares.add_argument("--shadow", type=_shadow, metavar="N", help="compute this release too and compare it; or none")
    shares.add_argument("--guard", metavar="BOUNDS", help=f"take the canary out by itself past {_GUARD_HELP}; or none")
