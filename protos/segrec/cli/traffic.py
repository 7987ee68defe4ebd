"""`segrec traffic` and `segrec rollback`: show and change which release answers which users."""

import argparse
from collections.abc import Sequence
from datetime import UTC
from typing import Any

from segrec.cli.exit_codes import OK
from segrec.cli.records import iso_time, json_line
from segrec.cli.terminal import say
from segrec.client import ModelClient
from segrec.errors import DeadlineExceeded, SegrecError, Unavailable
from segrec.traffic import (
    GuardBounds,
    TrafficState,
    origin_sentences,
    parse_change,
    percent_of,
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
_GUARD_HELP = (
    "remove the canary automatically above these bounds: errors, degraded, unconfident (shares), p99 (such as 50ms), "
    "window (seconds), min (answers); or none"
)


def traffic(client: ModelClient, options: argparse.Namespace) -> int:
    """Changes the traffic when an option asks for a change, then prints the traffic in force."""
    if not options.shares and options.shadow is None and options.guard is None:
        overview = client.overview()
        _print(overview.traffic, overview.traffic_failure, options)
        return OK
    change = parse_change(options.shares, options.shadow, options.guard)
    overview = client.overview()
    after = change.applied_to(state_of(overview.traffic.traffic), active_release(overview))
    changed_by = options.by or user_at_host()
    try:
        record = client.set_traffic(
            after.stable,
            canary=after.canary,
            canary_share=after.canary_percent / 100.0,
            shadow=after.shadow,
            guard=guard_message(after.guard) if after.guard else None,
            reason=options.reason,
            changed_by=changed_by,
            etag=overview.traffic.etag,
            timeout=options.timeout,
        )
    except (Unavailable, DeadlineExceeded) as error:
        record = _changed_despite(error, client, overview.traffic, changed_by)
    _print(record, "", options)
    return OK


def rollback(client: ModelClient, options: argparse.Namespace) -> int:
    """Undoes the last change of the traffic and prints what changed."""
    before, changed_by = client.overview().traffic, options.by or user_at_host()
    try:
        answer = client.rollback(
            reason=options.reason,
            changed_by=changed_by,
            etag=before.etag,
            timeout=options.timeout,
        )
        record, summary = answer.traffic, answer.summary
    except (Unavailable, DeadlineExceeded) as error:
        record = _changed_despite(error, client, before, changed_by)
        summary = " ".join(["The server's answer was lost. In force now:", *sentences(state_of(record.traffic))])
    say(json_line({"summary": summary} | _record(record, "")) if options.json else summary)
    return OK


def _changed_despite(error: SegrecError, client: ModelClient, before: TrafficRecord, changed_by: str) -> TrafficRecord:
    """The traffic in force when the answer to a change was lost and the change was made; else raises `error`."""
    try:
        record = client.overview().traffic
    except SegrecError:
        raise error from None
    if record.etag == before.etag or record.changed_by != changed_by:
        raise error
    return record


def active_release(overview: ListReleasesResponse) -> int:
    """The number of the release that answers by default; 0 without one."""
    if overview.traffic.traffic.stable_release:
        return overview.traffic.traffic.stable_release
    active = (message.release for message in overview.releases if message.state == ReleaseState.RELEASE_STATE_ACTIVE)
    return next(active, 0)


def state_of(message: Traffic) -> TrafficState:
    """The traffic as a value of the command line's grammar."""
    return TrafficState(
        message.stable_release,
        message.canary_release,
        percent_of(message.canary_share),
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
    """The message of a guard. A field without a bound stays unset; the server then uses its default."""
    guard = Guard()
    for name, bound in bounds.items():
        if name == "max_p99_seconds":
            guard.max_p99_time.FromNanoseconds(round(bound * 1e9))
        elif name == "window_seconds":
            guard.window.FromNanoseconds(round(bound * 1e9))
        else:
            setattr(guard, name, bound)
    return guard


def _print(record: TrafficRecord, failure: str, options: argparse.Namespace) -> None:
    if options.json:
        say(json_line(_record(record, failure)))
        return
    changed_time = record.update_time.ToDatetime(UTC) if record.HasField("update_time") else None
    origin = origin_sentences(record.previous_releases, changed_time, record.changed_by, record.reason)
    say(*sentences(state_of(record.traffic)), *origin)
    if failure:
        say(f"The traffic file cannot be used, so the last good traffic is in force: {failure}")


def _record(record: TrafficRecord, failure: str) -> dict[str, Any]:
    message = record.traffic
    return {
        "stable_release": message.stable_release,
        "canary_release": message.canary_release,
        "canary_share": message.canary_share,
        "shadow_release": message.shadow_release,
        "guard": _bounds_of(message.guard) if message.HasField("guard") else None,
        "previous_releases": list(record.previous_releases),
        "update_time": iso_time(record.update_time) if record.HasField("update_time") else None,
        "changed_by": record.changed_by,
        "reason": record.reason,
        "failure": failure,
    }


def add_commands(parsers: Sequence[argparse.ArgumentParser]) -> None:
    """Adds the options of `traffic` and `rollback` to their two parsers."""
    for parser in parsers:
        parser.add_argument("--reason", default="", metavar="TEXT", help="reason for the change, for the audit log")
        parser.add_argument("--by", default="", metavar="NAME", help="author, for the audit log; default user@host")
    shares = parsers[0]
    shares.add_argument("shares", nargs="*", metavar="RELEASE=PERCENT", help="such as 7=95 8=5, or newest=100")
    shares.add_argument("--shadow", metavar="N", help="also compute and compare this release; or none")
    shares.add_argument("--guard", metavar="BOUNDS", help=_GUARD_HELP)
