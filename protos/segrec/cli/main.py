"""The command `segrec`: its parsers, its connection options, and errors as exit codes."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import cast

from segrec.channel import DEFAULT_ADDRESS, DEFAULT_MODEL_ADDRESS, DEFAULT_TIMEOUT_SECONDS, Tls, read_token
from segrec.cli import (
    catalogue,
    commands,
    exit_codes,
    health,
    recommend,
    record,
    stream,
    stream_options,
    traffic,
)
from segrec.cli.files import reading_options
from segrec.cli.terminal import complain
from segrec.client import ModelClient, SegrecClient
from segrec.errors import InvalidArgument, SegrecError
from segrec.requests import RecommendArguments, strategy_of

_DEFAULT_TIMEOUTS = {"stream": "120", "traffic": "90", "rollback": "90"}
_MODEL_COMMANDS: dict[str, Callable[[ModelClient, argparse.Namespace], int]] = {
    "releases": commands.releases,
    "traffic": traffic.traffic,
    "rollback": traffic.rollback,
}
_EVENT_ROLES = (*record.REQUIRED, *record.OPTIONAL)
_RECOMMEND_FIELDS = {
    "top_k": "top_k",
    "strategy": "strategy",
    "exclude_seen": "exclude_seen",
    "exclude_item": "exclude_item_ids",
    "exclude_category": "exclude_categories",
    "category": "include_categories",
    "candidate": "candidate_item_ids",
    "diversity": "diversity",
    "include_variants": "include_variants",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. An error is one sentence on stderr."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 gets escapes, not an error
    try:
        code = _run(options)
        sys.stdout.flush()
        return code
    except SegrecError as error:
        complain(f"segrec: {error}")
        return exit_codes.exit_code(error)
    except KeyboardInterrupt:
        complain("segrec: interrupted")
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        # The reader closed the pipe. Python writes to stdout once more at exit; /dev/null keeps that from failing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.BROKEN_PIPE
    except OSError as error:
        complain(f"segrec: {error.filename or 'input/output'}: {error.strerror}")
        return exit_codes.OTHER


def _run(options: argparse.Namespace) -> int:
    tls = Tls(options.tls_ca, options.tls_cert, options.tls_key) if _wants_tls(options) else None
    timeout_seconds = options.timeout or DEFAULT_TIMEOUT_SECONDS
    token = read_token(options.token_file or os.environ.get("SEGREC_TOKEN_FILE", ""))
    if options.command in _MODEL_COMMANDS:
        address = options.address or os.environ.get("SEGREC_MODEL_ADDRESS") or DEFAULT_MODEL_ADDRESS
        with ModelClient(address, tls=tls, timeout_seconds=timeout_seconds, token=token) as models:
            return _MODEL_COMMANDS[options.command](models, options)
    address = options.address or os.environ.get("SEGREC_ADDRESS") or DEFAULT_ADDRESS
    if options.command == "health":
        return health.health(address, tls, timeout_seconds, options)
    with SegrecClient(address, tls=tls, timeout_seconds=timeout_seconds, token=token) as client:
        return _run_command(client, options)


def _run_command(client: SegrecClient, options: argparse.Namespace) -> int:
    if options.command == "recommend":
        return recommend.recommend(client, options, _recommend_arguments(options))
    if options.command == "stream":
        arguments = _recommend_arguments(options)
        if arguments and not options.recommend:
            raise InvalidArgument(f"{', '.join(arguments)}: give these options only with --recommend")
        return stream.stream_users(client, options, arguments)
    if options.command == "record":
        return record.record_file(client, options)
    simple = {
        "segment": commands.segment,
        "segments": commands.segments,
        "history": commands.history,
        "erase": commands.erase,
        "items": catalogue.items,
        "similar": catalogue.similar,
        "categories": catalogue.categories,
        "actions": catalogue.actions,
    }
    return simple[options.command](client, options)


def _wants_tls(options: argparse.Namespace) -> bool:
    return bool(options.tls_ca or options.tls_cert or options.tls_key)


def _recommend_arguments(options: argparse.Namespace) -> RecommendArguments:
    values = {field: getattr(options, name) for name, field in _RECOMMEND_FIELDS.items()}
    arguments = {field: value for field, value in values.items() if value is not None}
    if "strategy" in arguments:
        strategy_of(arguments["strategy"])
    return cast(RecommendArguments, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segrec",
        description="Queries a Segrec server for segments and recommendations.",
        epilog=exit_codes.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands_ = _Commands(subparsers)
    _add_query_commands(commands_)
    for parser_ in catalogue.add_commands(commands_.add):
        _add_release(parser_)
    _add_model_commands(commands_)
    _add_file_commands(commands_)
    return parser


_TRAFFIC_DETAILS = """The change is in force when the command returns.
A canary always answers the same users at the same share; a larger share only adds users.
8=5 gives five percent of the users to release 8 and the rest to the stable release.
Without --shadow the shadow stays; without --guard the guard stays with its canary."""
_ROLLBACK_DETAILS = """Removes the canary; without a canary, the previous stable release answers again."""


_FILES = """Files: delimited text (comma, semicolon, tab or bar; UTF-8, UTF-16 or GB18030), NDJSON (.ndjson, .jsonl,
.json), both also as .gz or .zst, and Parquet, which needs Polars. They are read as `segrec-train` reads them: columns
by their common names (userId, "User ID", 用户ID), ids without blanks around and 17850.0 as 17850, and words such as
NULL as missing. A row that cannot be read is refused and counted; a file that cannot be read is refused as a whole."""


class _Commands:
    """Adds commands that share the common options."""

    def __init__(self, subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        self._subparsers = subparsers

    def add(self, name: str, summary: str, details: str = "") -> argparse.ArgumentParser:
        """A command with the common options. Its help starts with the summary and the details."""
        parser = self._subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {details}".strip(),
            epilog=exit_codes.HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_common(parser, name)
        return parser


def _add_common(parser: argparse.ArgumentParser, name: str) -> None:
    variable, default = ("SEGREC_ADDRESS", DEFAULT_ADDRESS)
    if name in _MODEL_COMMANDS:
        variable, default = ("SEGREC_MODEL_ADDRESS", DEFAULT_MODEL_ADDRESS)
    common = parser.add_argument_group("connection and output")
    common.add_argument("--address", metavar="HOST:PORT", help=f"the server; default ${variable}, else {default}")
    common.add_argument("--tls-ca", default="", metavar="FILE", help="trusted root certificates (PEM); turns TLS on")
    common.add_argument("--tls-cert", default="", metavar="FILE", help="client certificate (PEM)")
    common.add_argument("--tls-key", default="", metavar="FILE", help="key of the client certificate (PEM)")
    common.add_argument(
        "--token-file", default="", metavar="FILE", help="file with the caller's token; default $SEGREC_TOKEN_FILE"
    )
    default_timeout = _DEFAULT_TIMEOUTS.get(name, f"{DEFAULT_TIMEOUT_SECONDS:g}")
    timeout_help = f"longest wait for an answer; default {default_timeout}"
    common.add_argument("--timeout", type=_seconds, metavar="SECONDS", help=timeout_help)
    common.add_argument("--json", action="store_true", help="print JSON, one object per line")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def _add_query_commands(commands_: _Commands) -> None:
    segment = commands_.add("segment", "show the segment of each user")
    segment.add_argument("users", nargs="+", metavar="USER")
    _add_release(segment)
    items = commands_.add("recommend", "recommend items to users")
    items.add_argument("users", nargs="+", metavar="USER")
    _add_release(items)
    _add_recommend_options(items)
    items.add_argument(
        "--explain", action="store_true", help="show the parts of each score, and what counts of the history"
    )
    segments = commands_.add("segments", "list the segments, or show one segment")
    segments.add_argument("segment_id", nargs="?", type=int, metavar="ID")
    _add_release(segments)
    history = commands_.add("history", "show the newest events of a user")
    history.add_argument("user", metavar="USER")
    history.add_argument("--limit", type=int, default=100, help="number of events; default 100")
    health.add_options(commands_.add("health", "say whether the server answers and is ready (exit code 0 or 4)"))
    erase = commands_.add("erase", "delete everything stored about a user")
    erase.add_argument("user", metavar="USER")


def _add_model_commands(commands_: _Commands) -> None:
    releases = commands_.add("releases", "list the releases, or show one release")
    releases.add_argument("number", nargs="?", type=int, metavar="N")
    traffic.add_commands(
        (
            commands_.add("traffic", "show or change which release answers which users", _TRAFFIC_DETAILS),
            commands_.add("rollback", "undo the last change of the traffic", _ROLLBACK_DETAILS),
        )
    )


def _add_file_commands(commands_: _Commands) -> None:
    stream = commands_.add(
        "stream",
        "write the segments of, or items for, all users of a file",
        stream_options.DETAILS + _FILES,
    )
    stream_options.add_options(stream)
    _add_release(stream)
    _add_recommend_options(stream)
    record = commands_.add(
        "record",
        "store the events of a file",
        "Columns: user_id, item_id; optional: action (without one: event), value, timestamp, event_id.\n"
        "Times are ISO 8601, dates such as 20240131, or seconds, ms, µs or ns since 1970; they are cut off to ms.\n"
        "A second run on the same file stores no event twice.\n" + _FILES,
    )
    record.add_argument("file", metavar="FILE", help="a table of events")
    reading_options.add_options(record, _EVENT_ROLES)


def _add_release(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--release",
        type=_release,
        default=0,
        metavar="N",
        help="release that answers: a number, stable or canary; default: the traffic chooses",
    )


def _release(text: str) -> int | str:
    if text in ("stable", "canary"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number, stable or canary") from None


def _add_recommend_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to recommend")
    group.add_argument("--top-k", type=int, metavar="N", help="number of items, 1 to 500; default 10")
    group.add_argument("--strategy", metavar="NAME", help="hybrid (default), personal, segment or popular")
    group.add_argument(
        "--exclude-seen",
        action=argparse.BooleanOptionalAction,
        help="leave out items of the user's history; the default is set in the release",
    )
    group.add_argument("--exclude-item", action="append", metavar="ID", help="leave out this item; may be repeated")
    group.add_argument(
        "--exclude-category", action="append", metavar="NAME", help="leave out this category; may be repeated"
    )
    group.add_argument(
        "--category", action="append", metavar="NAME", help="only items of this category; may be repeated"
    )
    group.add_argument("--candidate", action="append", metavar="ID", help="rank only the candidates; may be repeated")
    group.add_argument("--diversity", type=float, metavar="X", help="weight of variety against score, 0 (default) to 1")
    group.add_argument(
        "--include-variants", action="store_true", default=None, help="show all items of one title, not the best only"
    )


if __name__ == "__main__":
    sys.exit(main())
