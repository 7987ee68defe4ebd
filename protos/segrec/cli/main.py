"""The command `segrec`."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import cast

from segrec.channel import DEFAULT_ADDRESS, DEFAULT_MODEL_ADDRESS, Tls
from segrec.cli import commands, exit_codes, record, stream, traffic
from segrec.client import ModelClient, SegrecClient
from segrec.errors import InvalidArgument, SegrecError
from segrec.requests import RecommendArguments, strategy_of

_TIMEOUT_SECONDS = 5.0
_DEFAULT_WAIT = {"stream": "30", "traffic": "90", "rollback": "90"}
_MODEL_COMMANDS: dict[str, Callable[[ModelClient, argparse.Namespace], int]] = {
    "releases": commands.releases,
    "traffic": traffic.traffic,
    "rollback": traffic.rollback,
}
_CHOICE = {
    "top_k": "top_k",
    "strategy": "strategy",
    "exclude_seen": "exclude_seen",
    "exclude_item": "exclude_item_ids",
    "exclude_category": "exclude_categories",
    "category": "include_categories",
    "candidate": "candidate_item_ids",
    "diversity": "diversity",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors are one sentence on stderr."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 gets escapes, not an error
    try:
        code = _run(options)
        sys.stdout.flush()
        return code
    except SegrecError as error:
        print(f"segrec: {error}", file=sys.stderr)
        return exit_codes.exit_code(error)
    except KeyboardInterrupt:
        print("segrec: interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        # The reader has gone; what Python would still write at exit goes nowhere instead of failing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.BROKEN_PIPE
    except OSError as error:
        print(f"segrec: {error.filename or 'input/output'}: {error.strerror}", file=sys.stderr)
        return exit_codes.OTHER


def _run(options: argparse.Namespace) -> int:
    tls = Tls(options.tls_ca, options.tls_cert, options.tls_key) if _wants_tls(options) else None
    timeout_seconds = options.timeout or _TIMEOUT_SECONDS
    if options.command in _MODEL_COMMANDS:
        address = options.address or os.environ.get("SEGREC_MODEL_ADDRESS") or DEFAULT_MODEL_ADDRESS
        with ModelClient(address, tls=tls, timeout_seconds=timeout_seconds, token=_token(options)) as models:
            return _MODEL_COMMANDS[options.command](models, options)
    address = options.address or os.environ.get("SEGREC_ADDRESS") or DEFAULT_ADDRESS
    with SegrecClient(address, tls=tls, timeout_seconds=timeout_seconds) as client:
        return _ask(client, options)


def _token(options: argparse.Namespace) -> str:
    if options.command == "releases":
        return ""
    return traffic.read_token(options.token_file or os.environ.get("SEGREC_TOKEN_FILE", ""))


def _ask(client: SegrecClient, options: argparse.Namespace) -> int:
    if options.command == "recommend":
        return commands.recommend(client, options, _choice(options))
    if options.command == "stream":
        choice = _choice(options)
        if choice and not options.recommend:
            raise InvalidArgument(f"{', '.join(choice)}: only with --recommend")
        return stream.stream_users(client, options, choice)
    if options.command == "record":
        return record.record_file(client, options)
    simple = {
        "segment": commands.segment,
        "segments": commands.segments,
        "history": commands.history,
        "erase": commands.erase,
    }
    return simple[options.command](client, options)


def _wants_tls(options: argparse.Namespace) -> bool:
    return bool(options.tls_ca or options.tls_cert or options.tls_key)


def _choice(options: argparse.Namespace) -> RecommendArguments:
    given = {field: getattr(options, name) for name, field in _CHOICE.items() if getattr(options, name) is not None}
    if "strategy" in given:
        strategy_of(given["strategy"])
    return cast(RecommendArguments, given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segrec",
        description="Asks a Segrec server for segments and recommendations.",
        epilog=exit_codes.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_questions(_Commands(subparsers))
    _add_files(_Commands(subparsers))
    return parser


_TRAFFIC_DETAILS = """In force when it returns.
A canary answers the same users at the same share, always; a larger share only adds users.
What is not said stays: 8=5 gives release 8 five percent, and the rest to the stable one."""
_ROLLBACK_DETAILS = """A canary is taken out; without one, the release that was stable before answers again."""


class _Commands:
    """Adds commands that share the common options."""

    def __init__(self, subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        self._subparsers = subparsers

    def add(self, name: str, summary: str, details: str = "") -> argparse.ArgumentParser:
        """A command with the common options; `details` follows the summary in its help."""
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
    common.add_argument("--tls-ca", default="", metavar="FILE", help="trust these certificates (PEM), and encrypt")
    common.add_argument("--tls-cert", default="", metavar="FILE", help="client certificate (PEM)")
    common.add_argument("--tls-key", default="", metavar="FILE", help="its key (PEM)")
    waits = f"for an answer; default {_DEFAULT_WAIT.get(name, '5')}"
    common.add_argument("--timeout", type=_seconds, metavar="SECONDS", help=f"longest wait {waits}")
    common.add_argument("--json", action="store_true", help="print JSON, one object a line")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def _add_questions(commands_: _Commands) -> None:
    segment = commands_.add("segment", "tell the segment of users")
    segment.add_argument("users", nargs="+", metavar="USER")
    _add_release(segment)
    recommend = commands_.add("recommend", "recommend items to users")
    recommend.add_argument("users", nargs="+", metavar="USER")
    _add_release(recommend)
    _add_choice(recommend)
    segments = commands_.add("segments", "list the segments, or show one of them")
    segments.add_argument("segment_id", nargs="?", type=int, metavar="ID")
    _add_release(segments)
    history = commands_.add("history", "show the newest events of a user")
    history.add_argument("user", metavar="USER")
    history.add_argument("--limit", type=int, default=100, help="how many, 1 to 4096; default 100")
    erase = commands_.add("erase", "delete all that is stored of a user")
    erase.add_argument("user", metavar="USER")
    releases = commands_.add("releases", "list the releases, or show one of them")
    releases.add_argument("number", nargs="?", type=int, metavar="N")
    traffic.add_commands(
        (
            commands_.add("traffic", "show which release answers whom, or say so", _TRAFFIC_DETAILS),
            commands_.add("rollback", "take the last change of the traffic back", _ROLLBACK_DETAILS),
        )
    )


def _add_files(commands_: _Commands) -> None:
    stream = commands_.add(
        "stream",
        "segment, or recommend to, all users of a file",
        "A run that was interrupted goes on with --resume.\n"
        "Each user is written once, in the order of the input, failed ones with their status.\n"
        "Users with a degraded answer are counted at the end and give exit code 7; a second run asks for them again.",
    )
    stream.add_argument(
        "--users", required=True, metavar="FILE", help="CSV, NDJSON or Parquet with user_id, or one id a line"
    )
    stream.add_argument(
        "--out", required=True, metavar="FILE", help=".csv, .ndjson or .parquet; FILE.part until complete"
    )
    stream.add_argument("--resume", action="store_true", help="go on with FILE where FILE.progress says it ended")
    stream.add_argument(
        "--chunk-size", type=int, default=1024, metavar="N", help="users a message, 1 to 1024, default 1024"
    )
    stream.add_argument("--recommend", action="store_true", help="recommend items instead of telling segments")
    _add_release(stream)
    _add_choice(stream)
    record = commands_.add(
        "record",
        "store the events of a file",
        "Columns: user_id, item_id, action, and value, timestamp, event_id where there are any.\n"
        "Times are ISO 8601 (UTC if they name no zone) or seconds or milliseconds since 1970.\n"
        "Running it again stores nothing twice.",
    )
    record.add_argument("file", metavar="FILE", help="CSV, NDJSON or Parquet")


def _add_release(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--release",
        type=_release,
        default=0,
        metavar="N",
        help="answer from this one, or from stable or canary; default: as the traffic has it",
    )


def _release(text: str) -> int | str:
    if text in ("stable", "canary"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number, stable or canary") from None


def _add_choice(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_argument_group("what to recommend")
    choice.add_argument("--top-k", type=int, metavar="N", help="how many items, 1 to 500; default 10")
    choice.add_argument("--strategy", metavar="NAME", help="hybrid (default), personal, segment or popular")
    choice.add_argument(
        "--exclude-seen",
        action=argparse.BooleanOptionalAction,
        help="leave out items of the user's history; default as the release was trained",
    )
    choice.add_argument("--exclude-item", action="append", metavar="ID", help="never this item; may be repeated")
    choice.add_argument("--exclude-category", action="append", metavar="NAME", help="nothing of this category")
    choice.add_argument("--category", action="append", metavar="NAME", help="only items of this category")
    choice.add_argument("--candidate", action="append", metavar="ID", help="rank only this item and others so named")
    choice.add_argument("--diversity", type=float, metavar="X", help="variety over score, 0 (default) to 1")


if __name__ == "__main__":
    sys.exit(main())
