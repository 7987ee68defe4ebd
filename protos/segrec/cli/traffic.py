"""`segrec traffic` and `segrec rollback`: which release answers whom."""

import argparse
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

from segrec.cli.exit_codes import OK
from segrec.cli.records import iso_time, json_line
from segrec.client import ModelClient
from segrec.errors import InvalidArgument
from segrec.requests import TRAFFIC_CHANGE_SECONDS
from segrec.traffic import (
    GuardBounds,
    TrafficState,
    origin_sentences,
    parse_change,
    sentences,
    user_at_host,
)
from segrec.v1.model_service_pb2 import (
    Guard,
    ListReleasesResponse,
    ReleaseState,
    Traffic,
    TrafficRecord,
)

_SHARES = ("max_error_share", "max_degraded_share", "max_unconfident_share")
_GUARD_HELP = "errors, degraded, unconfident (shares), p99 (such as 50ms), window (seconds), min (answers)"


def traffic(client: ModelClient, options: argparse.Namespace) -> int:
    """Prints the traffic in force; with something to change, changes it before."""
    if not options.shares and options.shadow is None and options.guard is None:
        overview = client.overview()
        _print(overview.traffic, overview.traffic_failure, options)
        return OK
    change = parse_change(options.shares, options.shadow, options.guard)
    overview = client.overview()
    after = change.applied_to(state_of(overview.traffic.traffic), active_release(overview))
    record = client.set_traffic(
        after.stable,
        canary=after.canary,
        canary_percent=after.canary_percent,
        shadow=after.shadow,
        guard=guard_message(after.guard) if after.guard else None,
        reason=options.reason,
        changed_by=options.by or user_at_host(),
        timeout_seconds=options.timeout or TRAFFIC_CHANGE_SECONDS,
    )
    _print(record, "", options)
    return OK


def rollback(client: ModelClient, options: argparse.Namespace) -> int:
    """Takes the last change back, and says what that means."""
    timeout_seconds = options.timeout or TRAFFIC_CHANGE_SECONDS
    answer = client.rollback(
        reason=options.reason, changed_by=options.by or user_at_host(), timeout_seconds=timeout_seconds
    )
    if options.json:
        print(json_line({"summary": answer.summary} | _record(answer.traffic, "")))
    else:
        print(answer.summary)
    return OK


def active_release(overview: ListReleasesResponse) -> int:
    """The release that answers by default, 0 where there is none."""
    if overview.traffic.traffic.stable_release:
        return overview.traffic.traffic.stable_release
    active = (found.release for found in overview.releases if found.state == ReleaseState.RELEASE_STATE_ACTIVE)
    return next(active, 0)


def state_of(message: Traffic) -> TrafficState:
    """The traffic of a message."""
    return TrafficState(
        message.stable_release,
        message.canary_release,
        message.canary_percent,
        message.shadow_release,
        _bounds_of(message.guard) if message.HasField("guard") else None,
    )


def _bounds_of(message: Guard) -> GuardBounds:
    bounds: dict[str, float] = {name: getattr(message, name) for name in _SHARES if message.HasField(name)}
    if message.HasField("max_p99_time"):
        bounds["max_p99_seconds"] = message.max_p99_time.ToNanoseconds() / 1e9
    window_seconds = message.window.ToNanoseconds() / 1e9
    return bounds | {"window_seconds": window_seconds, "min_answer_count": message.min_answer_count}


def guard_message(bounds: GuardBounds) -> Guard:
    """The message of a guard; a field without a bound stays unset, and the server gives it its default."""
    guard = Guard()
    for name, bound in bounds.items():
        if name == "max_p99_seconds":
            guard.max_p99_time.FromNanoseconds(round(bound * 1e9))
        elif name == "window_seconds":
            guard.window.FromNanoseconds(round(bound * 1e9))
        else:
            setattr(guard, name, bound)
    return guard


def read_token(path: str) -> str:
    """The token in a file; empty where no file is named. Raises InvalidArgument."""
    try:
        return Path(path).read_text(encoding="ascii").strip() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"The token file {path} cannot be read: {error}") from error


def _print(record: TrafficRecord, failure: str, options: argparse.Namespace) -> None:
    if options.json:
        print(json_line(_record(record, failure)))
        return
    changed_time = record.changed_time.ToDatetime(UTC) if record.HasField("changed_time") else None
    origin = origin_sentences(record.previous_releases, changed_time, record.changed_by, record.reason)
    print("\n".join([*sentences(state_of(record.traffic)), *origin]))
    if failure:
        print(f"This is the last good traffic: {failure}")


def _record(record: TrafficRecord, failure: str) -> dict[str, Any]:
    now = record.traffic
    return {
        "stable_release": now.stable_release,
        "canary_release": now.canary_release,
        "canary_percent": now.canary_percent,
        "shadow_release": now.shadow_release,
        "guard": _bounds_of(now.guard) if now.HasField("guard") else None,
        "previous_releases": list(record.previous_releases),
        "changed_time": iso_time(record.changed_time) if record.HasField("changed_time") else None,
        "changed_by": record.changed_by,
        "reason": record.reason,
        "failure": failure,
    }


def add_commands(parsers: Sequence[argparse.ArgumentParser]) -> None:
    """Gives the parsers of `traffic` and `rollback` their options."""
    for parser in parsers:
        parser.add_argument("--reason", default="", metavar="TEXT", help="why, for the audit log")
        parser.add_argument("--by", default="", metavar="NAME", help="who, for the audit log; default user@host")
        parser.add_argument(
            "--token-file", default="", metavar="FILE", help="the server's token; default $SEGREC_TOKEN_FILE"
        )
    shares = parsers[0]
    shares.add_argument("shares", nargs="*", metavar="RELEASE=PERCENT", help="such as 7=95 8=5, or newest=100")
    shares.add_argument("--shadow", metavar="N", help="compute this release too and compare it; or none")
    shares.add_argument("--guard", metavar="BOUNDS", help=f"take the canary out by itself past {_GUARD_HELP}; or none")
