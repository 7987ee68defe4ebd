"""The commands of `segrec` that print the answers of unary calls."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.message import Message

from segrec.cli.exit_codes import OK, ROWS_DEGRADED, exit_code
from segrec.cli.figure_tables import figure_tables
from segrec.cli.records import iso_time, json_line, plain_float, segment_record, table
from segrec.cli.release_stats import live_record, live_sentences
from segrec.cli.terminal import complain, say
from segrec.client import ModelClient, SegrecClient
from segrec.errors import InvalidArgument, NotFound
from segrec.names import warning_sentence
from segrec.v1.common_pb2 import Event
from segrec.v1.event_service_pb2 import Remainder, RemainderPlace
from segrec.v1.model_service_pb2 import Figure, Release, ReleaseState, TrainedOn
from segrec.v1.segrec_service_pb2 import Migration, SegmentItem, SegmentProfile, SegmentRow, Trait, TraitKind

_ITEM_FIELDS = ("item_id", "title", "user_share", "lift", "lift_low")


def segment(client: SegrecClient, options: argparse.Namespace) -> int:
    """Prints the segment of each user; returns the exit code, see `answers_of`."""
    rows, code = answers_of(options.users, lambda user: client.segment(user, release=options.release))
    records = [segment_record(SegmentRow(user_id=user, result=answer)) for user, answer in rows]
    if options.json:
        print_json(records)
    elif records:
        columns = ("user_id", "segment_id", "label", "confidence", "distance", "release", "history_event_count")
        headers = ("user", "segment", "label", "confidence", "distance", "release", "events", "note")
        lines = [
            [shown_id(record[name]) if name == "user_id" else record[name] for name in columns] + [note_of(record)]
            for record in records
        ]
        say(*table(headers, lines))
    return code


def answers_of(users: list[str], call: Callable[[str], Any]) -> tuple[list[tuple[str, Any]], int]:
    """The answers by user, and the exit code. A refused user is reported on stderr; the other users are answered.

    The code is that of the first refusal; without one it says whether an answer is degraded. What the release does not
    know of the options is reported on stderr too, once.
    """
    rows, code = [], OK
    for user in users:
        try:
            rows.append((user, call(user)))
        except (InvalidArgument, NotFound) as error:
            complain(f"segrec: {user!r}: {error}")
            code = code or exit_code(error)
    for sentence in dict.fromkeys(warning_sentence(warning) for _, answer in rows for warning in answer.warnings):
        complain(f"segrec: warning: {sentence}")
    is_degraded = any(answer.info.degraded for _, answer in rows)
    return rows, code or (ROWS_DEGRADED if is_degraded else OK)


def note_of(record: dict[str, Any]) -> str:
    """What limits an answer, in a few words; empty if nothing does."""
    if record["degraded"]:
        return f"degraded: {record['reason'].lower().replace('_', ' ')}"
    if record["state"] == "no_history":
        return "no history"
    notes = ["no confident segment"] if record["state"] == "no_confident_segment" else []
    return ", ".join(notes + ["short history"] * record["short_history"])


def shown_id(text: str) -> str:
    """The id, or two quotation marks for an empty one."""
    return text or '""'


def segments(client: SegrecClient, options: argparse.Namespace) -> int:
    """Prints the segments of a release, or one segment in detail."""
    if options.segment_id is not None:
        answer = client.get_segment(options.segment_id, options.release)
        if options.json:
            print_json([_profile_record(answer.segment, answer.release)])
        else:
            _print_profile(answer.segment, answer.release)
            _print_migration(answer.migration)
        return OK
    response = client.list_segments(options.release)
    if options.json:
        print_json([_profile_record(profile, response.release) for profile in response.segments])
        return OK
    say(f"release {response.release}")
    lines = [
        (profile.segment_id, profile.label, profile.user_count, f"{profile.share:.1%}", _traits(profile))
        for profile in response.segments
    ]
    say(*table(("segment", "label", "users", "share", "what sets it apart"), lines))
    _print_migration(response.migration)
    return OK


def _traits(profile: SegmentProfile) -> str:
    return ", ".join(f"{trait.name} ×{trait.lift:.1f}" for trait in profile.traits[:3])


def _print_profile(profile: SegmentProfile, release: int) -> None:
    say(f"Segment {profile.segment_id}: {profile.label} (release {release})")
    if profile.description:
        say(profile.description)
    say(f"{profile.user_count:,} users, {profile.share:.1%} of all")
    say(f"mean distance {profile.mean_distance:.3f}, silhouette {profile.silhouette:.3f}", "")
    traits = [(_kind(trait), trait.name, f"{trait.share:.1%}", trait.lift) for trait in profile.traits]
    say(*table(("trait", "name", "share", "lift"), traits), "")
    _print_items("What most of its users chose, by share of users:", profile.top_items)
    _print_items("What it is particular about, by the lower bound of the lift:", profile.particular_items)
    sizes = [(record.release, record.user_count, f"{record.share:.1%}") for record in profile.history]
    say(*table(("release", "users", "share"), sizes))


def _print_items(heading: str, items: Iterable[SegmentItem]) -> None:
    """Prints a list of items; nothing if it is empty."""
    lines = [(item.item_id, item.title, f"{item.user_share:.1%}", item.lift, item.lift_low) for item in items]
    if lines:
        say(heading, *table(("item", "title", "users", "lift", "at least"), lines), "")


def _print_migration(migration: Migration) -> None:
    """Prints how users and segments changed since the previous release; nothing without a previous release."""
    if not migration.previous_release:
        return
    say("", f"since release {migration.previous_release}, of {migration.user_count:,} users known to both releases:")
    lines = [
        (flow.from_segment_id or "elsewhere", flow.to_segment_id, flow.user_count, f"{flow.share:.1%}")
        for flow in migration.flows
    ]
    say(*table(("from", "to", "users", "share"), lines))
    for name, segment_ids in (("new", migration.born_segment_ids), ("retired", migration.retired_segment_ids)):
        if segment_ids:
            say(f"{name}: {_ids(segment_ids)}")
    for name, changes in (("split", migration.splits), ("merged", migration.merges)):
        for change in changes:
            say(f"{name}: {_ids(change.from_segment_ids)} → {_ids(change.to_segment_ids)}")


def _ids(segment_ids: Iterable[int]) -> str:
    return ", ".join(map(str, segment_ids))


def _profile_record(profile: SegmentProfile, release: int) -> dict[str, Any]:
    record = _fields(profile, "segment_id", "label", "user_count", "share", "mean_distance", "silhouette")
    record["traits"] = [{"kind": _kind(trait)} | _fields(trait, "name", "share", "lift") for trait in profile.traits]
    for name in ("top_items", "particular_items"):
        record[name] = [_fields(item, *_ITEM_FIELDS) for item in getattr(profile, name)]
    record["description"] = profile.description
    record["history"] = [_fields(size, "release", "user_count", "share") for size in profile.history]
    return record | {"release": release}


def _kind(trait: Trait) -> str:
    return TraitKind.Name(trait.kind).removeprefix("TRAIT_KIND_").lower()


def _fields(message: Message, *names: str) -> dict[str, Any]:
    values = {name: getattr(message, name) for name in names}
    return {name: plain_float(value) if isinstance(value, float) else value for name, value in values.items()}


def history(client: SegrecClient, options: argparse.Namespace) -> int:
    """Prints the newest events of a user, the newest first."""
    answer = client.history(options.user, options.limit)
    if options.json:
        print_json([_event_record(event) for event in answer.events])
        return OK
    say(f"{options.user}: {answer.total_size:,} events stored, {len(answer.events):,} shown")
    if answer.events:
        records = [_event_record(event) for event in answer.events]
        say(*table(("time", "action", "item", "value"), [list(record.values()) for record in records]))
    return OK


def _event_record(event: Event) -> dict[str, Any]:
    return {
        "timestamp": iso_time(event.timestamp) if event.HasField("timestamp") else None,
        "action": event.action,
        "item_id": event.item_id,
        "value": event.value if event.HasField("value") else None,
    }


def erase(client: SegrecClient, options: argparse.Namespace) -> int:
    """Erases a user and prints the receipt: the number of erased events, and what is left elsewhere."""
    receipt = client.erase(options.user)
    if options.json:
        left = [_remainder_record(remainder) for remainder in receipt.remainders]
        count = receipt.erased_event_count
        print_json([{"user_id": options.user, "erased_event_count": count, "remainders": left}])
        return OK
    say(f"{options.user}: {receipt.erased_event_count:,} events erased; events from before now are refused")
    for remainder in receipt.remainders:
        until = f" (until {iso_time(remainder.expire_time)})" if remainder.HasField("expire_time") else ""
        say(f"- {remainder.description}{until}")
    return OK


def _remainder_record(remainder: Remainder) -> dict[str, object]:
    return {
        "place": RemainderPlace.Name(remainder.place).removeprefix("REMAINDER_PLACE_").lower(),
        "description": remainder.description,
        "release": remainder.release or None,
        "expire_time": iso_time(remainder.expire_time) if remainder.HasField("expire_time") else None,
    }


def releases(client: ModelClient, options: argparse.Namespace) -> int:
    """Prints the releases, or one release in detail."""
    messages = client.list_releases() if options.number is None else [client.get_release(options.number)]
    records = [_release_record(release) for release in messages]
    if options.json:
        print_json(records)
    elif options.number is not None:
        facts = [f"{name}: {value}" for name, value in _flat(records[0]).items()]
        say(*facts, *live_sentences(messages[0]), *figure_tables(messages[0].figures))
    else:
        columns = ("release", "state", "traffic_share", "create_time", "item_count", "segment_count")
        lines = [[record[name] for name in columns] + [_remark(record)] for record in records]
        say(*table(("release", "state", "traffic", "created", "items", "segments", "remark"), lines))
    return OK


def _remark(record: dict[str, Any]) -> str:
    """What is wrong with a release, or why it stands by; empty for the others."""
    return str(record["failure"] or record["standby_reason"] or "")


def _release_record(release: Release) -> dict[str, Any]:
    return {
        "release": release.release,
        "state": ReleaseState.Name(release.state).removeprefix("RELEASE_STATE_").lower(),
        "traffic_share": plain_float(release.traffic_share),
        "failure": release.failure,
        "standby_reason": release.standby_reason or None,
        "forced_reason": release.forced_reason or None,
        "create_time": iso_time(release.create_time) if release.HasField("create_time") else None,
        "cutoff_time": iso_time(release.cutoff_time) if release.HasField("cutoff_time") else None,
        "forget_after_time": iso_time(release.forget_after_time) if release.HasField("forget_after_time") else None,
        "trained_on": _trained_on_record(release.trained_on) if release.HasField("trained_on") else None,
        "parent_release": release.parent_release or None,
        "embedding_dim": release.embedding_dim,
        "max_length": release.max_length,
        "item_count": release.item_count,
        "segment_count": release.segment_count,
        "min_confidence": plain_float(release.min_confidence) if release.HasField("min_confidence") else None,
        "min_history": release.min_history or None,
        "min_segment_size": release.min_segment_size or None,
        "figures": [_figure_record(figure) for figure in release.figures],
        "live": live_record(release),
    }


def _figure_record(figure: Figure) -> dict[str, Any]:
    record = _fields(figure, "protocol", "method", "metric")
    record |= {"k": figure.k if figure.HasField("k") else None, "value": plain_float(figure.value)}
    bounds = {name: plain_float(getattr(figure, name)) for name in ("low", "high") if figure.HasField(name)}
    return record | bounds


def _trained_on_record(trained_on: TrainedOn) -> dict[str, Any]:
    times = ("first_event_time", "last_event_time")
    return {
        **{name: iso_time(getattr(trained_on, name)) if trained_on.HasField(name) else None for name in times},
        "user_count": trained_on.user_count,
        "event_count": trained_on.event_count,
        "files": list(trained_on.files),
    }


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """The facts of a release line by line, those of `trained_on` by their own names, without the figures."""
    trained_on = {f"trained_on_{name}": value for name, value in (record.pop("trained_on") or {}).items()}
    if trained_on:
        trained_on["trained_on_files"] = ", ".join(trained_on["trained_on_files"])
    facts = {name: value for name, value in (record | trained_on).items() if name not in ("live", "figures")}
    return {name: value for name, value in facts.items() if value not in (None, "")}


def print_json(records: list[dict[str, Any]]) -> None:
    """Prints one JSON object a line."""
    for record in records:
        say(json_line(record))
