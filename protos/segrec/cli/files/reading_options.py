"""Options that say how a file is read: its columns, words for nothing, and times."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from typing import TypeVar

from segrec.reading.ids import id_of
from segrec.reading.refusals import Unreadable
from segrec.reading.times import check_format, milliseconds_of, zone_of
from segrec.reading.values import number_of
from segrec.reading.words import MISSING_WORDS, missing_words

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Rules:
    """How a person says that a file is to be read; the defaults read what `segrec-train` reads without settings."""

    columns: Mapping[str, str | bool] = field(default_factory=dict)
    """The column of a role by name; False for a role that is not read."""
    words: frozenset[str] = MISSING_WORDS
    timestamp_format: str | None = None
    zone: tzinfo = UTC

    def id_of(self, value: object) -> str | None:
        """`segrec.reading.ids.id_of` by these rules."""
        return id_of(value, self.words)

    def number_of(self, value: object) -> float | None:
        """`segrec.reading.values.number_of` by these rules."""
        return number_of(value, self.words)

    def milliseconds_of(self, value: object) -> int | None:
        """`segrec.reading.times.milliseconds_of` by these rules."""
        return milliseconds_of(value, form=self.timestamp_format, zone=self.zone, words=self.words)


def add_options(parser: argparse.ArgumentParser, roles: tuple[str, ...]) -> None:
    """Add the options that say how a file with columns of these roles is read."""
    group = parser.add_argument_group("how the file is read")
    group.add_argument(
        "--column",
        action="append",
        type=_column_of(roles),
        default=[],
        metavar="ROLE=NAME",
        help=f"the column of a role ({', '.join(roles)}); an empty NAME: do not read it; default: common names",
    )
    group.add_argument(
        "--missing-words",
        type=lambda text: missing_words(text.split(",")),
        default=MISSING_WORDS,
        metavar="WORDS",
        help="texts that mean a missing value, with commas between them; default: null, nan, n/a, \\N, - and such",
    )
    if "timestamp" in roles:
        group.add_argument(
            "--timestamp-format",
            type=_checked(_format_of),
            metavar="FORMAT",
            help="how times are written, such as %%d.%%m.%%Y %%H:%%M; default: ISO 8601 and numbers since 1970",
        )
        group.add_argument(
            "--timezone",
            type=_checked(zone_of),
            default=UTC,
            metavar="NAME",
            help="zone of times that have none, such as Asia/Shanghai; default UTC",
        )


def rules_of(options: argparse.Namespace) -> Rules:
    """The rules that the options of a command say."""
    return Rules(
        columns=dict(options.column),
        words=options.missing_words,
        timestamp_format=getattr(options, "timestamp_format", None),
        zone=getattr(options, "timezone", UTC),
    )


def column_option(role: str, name: str) -> str:
    """The option that gives a role a column, for messages."""
    return f"`--column {role}={name}`"


def _column_of(roles: tuple[str, ...]) -> Callable[[str], tuple[str, str | bool]]:
    def parse(text: str) -> tuple[str, str | bool]:
        role, equals, name = text.partition("=")
        if not equals or role not in roles:
            raise argparse.ArgumentTypeError(f"{text} is not ROLE=NAME with a role among {', '.join(roles)}")
        return role, name or False

    return parse


def _format_of(text: str) -> str:
    check_format(text)
    return text


def _checked(parse: Callable[[str], ValueT]) -> Callable[[str], ValueT]:
    def parsed(text: str) -> ValueT:
        try:
            return parse(text)
        except Unreadable as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed
