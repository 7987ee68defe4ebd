"""`segrec items`, `similar`, `categories` and `actions`: what a release knows."""

import argparse
from collections.abc import Iterable
from itertools import islice
from typing import Any, Protocol, cast

from segrec.cli.exit_codes import OK
from segrec.cli.records import json_line, plain_float, table
from segrec.cli.terminal import say
from segrec.client import SegrecClient
from segrec.requests import SimilarCall
from segrec.v1.catalogue_service_pb2 import Item, SimilarItem

Record = dict[str, Any]

_FILTERS = {
    "--exclude-item": ("exclude_item_ids", "leave out this item"),
    "--exclude-category": ("exclude_categories", "leave out this category"),
    "--category": ("include_categories", "only items of this category"),
    "--candidate": ("candidate_item_ids", "compare only the candidates"),
}
_SIMILAR_OPTIONS = ("top_k", "include_variants", *(field for field, _ in _FILTERS.values()))


class AddCommand(Protocol):
    """Adds a command with the common options."""

    def __call__(self, name: str, summary: str, details: str = "") -> argparse.ArgumentParser: ...


def items(client: SegrecClient, options: argparse.Namespace) -> int:
    """Prints the items of a release, or one item."""
    if options.item_id is not None:
        _print([_item_record(client.get_item(options.item_id, options.release))], options)
        return OK
    found = client.list_items(category=options.category, title_prefix=options.title, release=options.release)
    _print((_item_record(item) for item in islice(found, options.limit)), options)
    return OK


def similar(client: SegrecClient, options: argparse.Namespace) -> int:
    """Prints items like an item."""
    filters = {name: getattr(options, name) for name in _SIMILAR_OPTIONS if getattr(options, name) is not None}
    found = client.similar_items(options.item_id, release=options.release, **cast(SimilarCall, filters))
    _print([_similar_record(item) for item in found.items], options)
    return OK


def categories(client: SegrecClient, options: argparse.Namespace) -> int:
    """Prints the categories of a release."""
    found = client.list_categories(options.release)
    _print(({"category": category.name, "item_count": category.item_count} for category in found), options)
    return OK


def actions(client: SegrecClient, options: argparse.Namespace) -> int:
    """Prints the actions of a release."""
    records = [
        {"action": action.name, "weight": plain_float(action.weight), "other_names": list(action.other_names)}
        for action in client.list_actions(options.release)
    ]
    _print(records, options)
    return OK


def _similar_record(item: SimilarItem) -> Record:
    return {"item_id": item.item_id, "title": item.title, "similarity": plain_float(item.similarity)}


def _item_record(item: Item) -> Record:
    return {
        "item_id": item.item_id,
        "title": item.title,
        "categories": list(item.categories),
        "popularity_share": plain_float(item.popularity_share),
    }


def _print(records: Iterable[Record], options: argparse.Namespace) -> None:
    """JSON line by line, or one table; nothing found is said."""
    if options.json:
        for record in records:
            say(json_line(record))
        return
    rows = list(records)
    if not rows:
        say("nothing found")
        return
    lines = [[", ".join(value) if isinstance(value, list) else value for value in row.values()] for row in rows]
    say(*table([name.replace("_", " ") for name in rows[0]], lines))


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return int(text)


def add_commands(add: AddCommand) -> list[argparse.ArgumentParser]:
    """Adds the four commands and returns their parsers; each of them also needs the option `--release`."""
    listed = add("items", "list the items of a release, or show one item", "The most popular come first.")
    listed.add_argument("item_id", nargs="?", metavar="ID")
    listed.add_argument("--category", default="", metavar="NAME", help="only items of this category")
    listed.add_argument("--title", default="", metavar="TEXT", help="only items whose title begins so")
    listed.add_argument("--limit", type=_limit, default=100, metavar="N", help="most items; default 100")
    like = add("similar", "list items like an item", "Alternatives to the item; what follows it, `recommend` tells.")
    like.add_argument("item_id", metavar="ID")
    like.add_argument("--top-k", type=int, metavar="N", help="number of items, 1 to 500; default 10")
    for name, (field, summary) in _FILTERS.items():
        like.add_argument(name, action="append", dest=field, metavar="NAME", help=f"{summary}; may be repeated")
    like.add_argument("--include-variants", action="store_true", default=None, help="show all items of one title")
    return [
        listed,
        like,
        add("categories", "list the categories of a release", "Those with the most items come first."),
        add("actions", "list the actions of a release, as events name them", "The heaviest come first."),
    ]
