"""The recent figures of a release on one server, as a record and as sentences."""

from typing import Any

from segrec.cli.records import plain_float
from segrec.v1.model_service_pb2 import LiveFigures, Release

_SHARES = ("error_share", "degraded_share", "unconfident_share")
_COMPARED = ("changed_segment_share", "top_items_overlap", "score_shift")


def live_record(release: Release) -> dict[str, Any] | None:
    """The figures by name, times in seconds; a figure that was not measured is None.

    None for a release without figures.
    """
    if not release.HasField("live"):
        return None
    live = release.live
    record: dict[str, Any] = {"window_seconds": live.window.ToTimedelta().total_seconds()}
    record["answer_count"] = live.answer_count
    record |= {name: plain_float(getattr(live, name)) for name in _SHARES}
    for name in ("median_time", "p99_time"):
        seconds = getattr(live, name).ToTimedelta().total_seconds() if live.HasField(name) else None
        record[name.replace("time", "seconds")] = seconds
    record["compared_release"], record["compared_count"] = live.compared_release or None, live.compared_count
    return record | {name: plain_float(getattr(live, name)) if live.compared_count else None for name in _COMPARED}


def live_sentences(release: Release) -> list[str]:
    """The figures as sentences, one per line; empty for a release without figures."""
    if not release.HasField("live"):
        return []
    live = release.live
    window = f"{live.window.ToTimedelta().total_seconds():.0f} s"
    shares = f"{live.degraded_share:.2%} degraded, {live.unconfident_share:.1%} without a confident segment"
    times = f"; p50 {_milliseconds(live, 'median_time')}, p99 {_milliseconds(live, 'p99_time')}"
    lines = [
        f"in the last {window}, on this server: {live.answer_count:,} answers, "
        f"{live.error_share:.2%} errors, {shares}" + times * live.HasField("p99_time")
    ]
    if live.compared_count:
        lines.append(
            f"compared with release {live.compared_release}, for {live.compared_count:,} users: "
            f"{live.changed_segment_share:.1%} change segment, {live.top_items_overlap:.1%} of the first ten items "
            f"are the same, scores differ by {live.score_shift:.3g}"
        )
    return lines


def _milliseconds(live: LiveFigures, name: str) -> str:
    return f"{getattr(live, name).ToTimedelta().total_seconds() * 1000:.1f} ms"
