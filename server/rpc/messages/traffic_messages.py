"""Converts `segrec.v1.Traffic` and `TrafficRecord` to core values and back."""

import math

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from segrec.traffic import LARGEST_CANARY_PERCENT
from segrec.v1 import model_service_pb2 as pb

from server.core.errors import InvalidArgument
from server.core.repository.traffic import Guard, Traffic, validated_traffic
from server.rpc.messages.validation import in_range

LARGEST_RELEASE = 10**18 - 1
LONGEST_WINDOW_SECONDS = 3600.0
MAX_NAME_BYTES = 256
MAX_REASON_BYTES = 1024
_SHARES = ("max_error_share", "max_degraded_share", "max_unconfident_share")


def traffic_of(message: pb.Traffic) -> Traffic:
    """The traffic of a request. Raises `InvalidArgument` with the path of the wrong field."""
    for name in ("stable_release", "canary_release", "shadow_release"):
        if message.HasField(name):
            in_range(getattr(message, name), 1, LARGEST_RELEASE, f"traffic.{name}", reason="RELEASE_OUT_OF_RANGE")
    share = _within(message.canary_share, 0.0, LARGEST_CANARY_PERCENT / 100.0, "traffic.canary_share")
    guard = _guard_of(message.guard, "traffic.guard") if message.HasField("guard") else None
    fields = {
        "stable": message.stable_release,
        "canary": message.canary_release,
        "canary_share": share,
        "shadow": message.shadow_release,
    }
    return validated_traffic(fields | {"guard": guard})


def checked_text(value: str, most_bytes: int, field: str) -> str:
    """The text itself. Raises `InvalidArgument` when the text is too long or not printable on one line."""
    size = len(value.encode(errors="surrogatepass"))
    if size > most_bytes:
        raise InvalidArgument(
            f"{field} has {size} bytes; at most {most_bytes} are allowed", field, reason="TEXT_TOO_LONG"
        )
    if not value.isprintable():
        raise InvalidArgument(f"{field} has a character that cannot be printed", field, reason="TEXT_NOT_PRINTABLE")
    return value


def _guard_of(message: pb.Guard, field: str) -> Guard:
    bounds = {
        name: _within(getattr(message, name), 0.0, 1.0, f"{field}.{name}") for name in _SHARES if message.HasField(name)
    }
    if message.HasField("max_p99_time"):
        bounds["max_p99_seconds"] = _within(
            _seconds(message.max_p99_time), 1e-6, math.inf, f"{field}.max_p99_time", reason="GUARD_OUT_OF_RANGE"
        )
    if not bounds:
        raise InvalidArgument("a guard needs at least one bound", field, reason="GUARD_EMPTY")
    has_window = message.HasField("window")
    window = _within(
        _seconds(message.window) if has_window else 30.0,
        1.0,
        LONGEST_WINDOW_SECONDS,
        f"{field}.window",
        reason="GUARD_OUT_OF_RANGE",
    )
    count = in_range(
        message.min_answer_count if message.HasField("min_answer_count") else 100,
        1,
        2**62,
        f"{field}.min_answer_count",
        reason="GUARD_OUT_OF_RANGE",
    )
    return Guard(**bounds, window_seconds=window, min_answer_count=count)


def _within(value: float, smallest: float, largest: float, field: str, reason: str = "SHARE_OUT_OF_RANGE") -> float:
    if not smallest <= value <= largest:
        raise InvalidArgument(f"{field} is {value:g}; {smallest:g} to {largest:g} are allowed", field, reason=reason)
    return value


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def record_message(traffic: Traffic) -> pb.TrafficRecord:
    """The message of a traffic with its origin: author, time, reason and previous releases."""
    record = pb.TrafficRecord(
        traffic=pb.Traffic(
            stable_release=traffic.stable or None,
            canary_release=traffic.canary or None,
            canary_share=traffic.canary_share if traffic.canary else None,
            shadow_release=traffic.shadow or None,
            guard=_guard_message(traffic.guard) if traffic.guard else None,
        ),
        previous_releases=traffic.previous,
        changed_by=traffic.changed_by,
        reason=traffic.reason,
        etag=traffic.etag,
    )
    if traffic.changed_time is not None:
        time = Timestamp()
        time.FromDatetime(traffic.changed_time)
        record.update_time.CopyFrom(time)
    return record


def _guard_message(guard: Guard) -> pb.Guard:
    message = pb.Guard(
        max_error_share=guard.max_error_share,
        max_degraded_share=guard.max_degraded_share,
        max_unconfident_share=guard.max_unconfident_share,
        window=_duration(guard.window_seconds),
        min_answer_count=guard.min_answer_count,
    )
    if guard.max_p99_seconds is not None:
        message.max_p99_time.CopyFrom(_duration(guard.max_p99_seconds))
    return message


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
