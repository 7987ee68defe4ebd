"""The options of `segrec stream`."""

import argparse
import re
from dataclasses import dataclass

from segrec.cli.files import reading_options

DETAILS = """--resume continues an interrupted run, or starts one; with --force it also repeats a complete one.
Each user is written once, in the order of the input; a failed user is written with its status.
Users with a degraded answer are counted at the end; more than --max-degraded of them give exit code 7.
`--out -` writes to standard output for the next program of a pipe, and the closing line to standard error.
"""


@dataclass(frozen=True, slots=True)
class MaxDegraded:
    """Most degraded users of a run that ends with exit code 0: a number, or a share of all users."""

    count: int = 0
    share: float = 0.0

    def is_exceeded(self, degraded_count: int, read_count: int) -> bool:
        return degraded_count > max(self.count, self.share * read_count)


def add_options(stream: argparse.ArgumentParser) -> None:
    """Add the options of `segrec stream`, apart from those of the release and of recommendations."""
    stream.add_argument(
        "--users",
        required=True,
        metavar="FILE",
        help="a table with a column of user ids, or one id per line; - is standard input",
    )
    stream.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=".csv, .ndjson or .parquet, named FILE.part until it is complete; - is standard output",
    )
    stream.add_argument(
        "--format", choices=("csv", "ndjson", "arrow"), help="with `--out -`; arrow is an Arrow IPC stream"
    )
    stream.add_argument(
        "--resume", action="store_true", help="continue an interrupted run, as FILE.progress records it"
    )
    stream.add_argument("--force", action="store_true", help="replace files that are there already")
    stream.add_argument(
        "--failed", default="", metavar="FILE", help="also write failed and degraded users to this file for --users"
    )
    stream.add_argument(
        "--max-degraded",
        type=_max_degraded,
        default=MaxDegraded(),
        metavar="N",
        help="users, or a share such as 0.01 or 1%%, that may be degraded without exit code 7; default 0",
    )
    stream.add_argument(
        "--max-rate", type=_rate, metavar="N", help="most users a second, which leaves the server to other callers"
    )
    stream.add_argument(
        "--since",
        default="",
        metavar="FILE",
        help="write only users whose segment differs from that in FILE, the whole output of an earlier run",
    )
    stream.add_argument(
        "--chunk-size", type=int, default=1024, metavar="N", help="users in one message, 1 to 1024; default 1024"
    )
    stream.add_argument("--recommend", action="store_true", help="write items instead of segments")
    reading_options.add_options(stream, ("user_id",))
    stream.add_argument(
        "--user-column",
        dest="column",
        action="append",
        type=lambda name: ("user_id", name),
        metavar="NAME",
        help="the column of user ids; default: a common name such as user_id, customer_id or 用户ID",
    )


def _max_degraded(text: str) -> MaxDegraded:
    if re.fullmatch(r"[0-9]+", text):
        return MaxDegraded(count=int(text))
    share = re.fullmatch(r"([0-9]*\.?[0-9]+)(%?)", text)
    value = float(share[1]) / (100 if share[2] else 1) if share else 2.0
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is neither a number of users nor a share such as 0.01 or 1%")
    return MaxDegraded(share=value)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of users a second above 0")
    return rate
