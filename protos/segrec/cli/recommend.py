"""The command `segrec recommend`."""

import argparse
from collections.abc import Sequence
from typing import Any

from segrec.cli.commands import answers_of, note_of, print_json, shown_id
from segrec.cli.records import recommend_record, table
from segrec.cli.terminal import say
from segrec.client import SegrecClient
from segrec.requests import RecommendArguments
from segrec.v1.segrec_service_pb2 import RecommendRow

_PART_HEADERS = {
    "own_history": "own history",
    "encoder": "encoder",
    "segment": "segment",
    "popularity": "popularity",
    "trend": "trend",
    "rule": "rule",
}


def recommend(client: SegrecClient, options: argparse.Namespace, arguments: RecommendArguments) -> int:
    """Prints the items for each user; returns the exit code, see `answers_of`."""
    if options.explain:
        arguments = {**arguments, "explain": True}
    rows, code = answers_of(options.users, lambda user: client.recommend(user, release=options.release, **arguments))
    records = [recommend_record(RecommendRow(user_id=user, result=answer)) for user, answer in rows]
    if options.json:
        print_json(records)
        return code
    for record in records:
        say(_heading(record))
        say(*(_item_table(record["items"], options.explain) if record["items"] else ["no items"]))
        say(*_history_lines(record["items"]))
    return code


def _heading(record: dict[str, Any]) -> str:
    segment_text = f"segment {record['segment_id']} ({record['label']})" if record["segment_id"] else "no segment"
    facts = [segment_text, f"release {record['release']}", f"{record['history_event_count']:,} events"]
    facts.append(f"by {record['strategy']}")
    if record["removed_item_count"]:
        facts.append(f"items filtered out: {record['removed_item_count']:,}")
    return f"{record['user_id']}: {', '.join(fact for fact in (*facts, note_of(record)) if fact)}"


def _item_table(items: Sequence[dict[str, Any]], explain: bool) -> list[str]:
    """A line for each item; with `explain` the parts that at least one item has stand beside the score."""
    parts = [part for part in _PART_HEADERS if any(part in item.get("parts", ()) for item in items)] if explain else []
    base = ["base"] if explain else []
    lines = [
        [
            str(rank),
            shown_id(item["item_id"]),
            item["title"],
            item["score"],
            *(item[name] for name in base),
            *(item["parts"].get(part) for part in parts),
            item["reason"],
            "seen" * item["seen"],
        ]
        for rank, item in enumerate(items, start=1)
    ]
    headers = ("rank", "item", "title", "score", *base, *(_PART_HEADERS[part] for part in parts), "reason", "")
    return table(headers, lines)


def _history_lines(items: Sequence[dict[str, Any]]) -> list[str]:
    """For each item what counts most of the user's own history; nothing where no item tells it."""
    lines = [
        f"{rank}. {_name(item)}: {', '.join(_added(own) for own in item['history_items'])}"
        for rank, item in enumerate(items, start=1)
        if item.get("history_items")
    ]
    heading = "what counts most of this user's own history: how much lower the score would be without it"
    return [heading, *lines] if lines else []


def _added(own: dict[str, Any]) -> str:
    events = "1 event" if own["event_count"] == 1 else f"{own['event_count']:,} events"
    return f"{_name(own)} ({events}) {own['value']:.4f}"


def _name(item: dict[str, Any]) -> str:
    return str(item["title"] or shown_id(item["item_id"]))
