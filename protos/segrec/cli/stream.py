"""`segrec stream`: reads users from a file, streams them, and writes one row or more per user to a file."""

import argparse
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress

from segrec.cli.exit_codes import OK, ROWS_DEGRADED, ROWS_FAILED
from segrec.cli.input_file import InputFile
from segrec.cli.output_file import Output
from segrec.cli.reading_options import rules_of
from segrec.cli.records import json_line
from segrec.cli.terminal import complain, say
from segrec.client import SegrecClient
from segrec.errors import DataLoss, SegrecError
from segrec.requests import RecommendArguments
from segrec.streaming import RowStream
from segrec.v1.segrec_service_pb2 import RecommendRow, SegmentRow, StreamSummary
from segrec.window import STALL_SECONDS

_TERMINAL_SECONDS = 0.2
_LOG_SECONDS = 10.0


def stream_users(client: SegrecClient, options: argparse.Namespace, arguments: RecommendArguments) -> int:
    """Runs the command and returns its exit code. Raises SegrecError; all but DataLoss leave a run to resume."""
    request = {"recommend": options.recommend, "release": options.release, "choice": arguments}
    with InputFile(options.users, rules_of(options)) as source:
        users = source.users()
        output = Output(options.out, request, resume=options.resume)
        meter = Meter(source, output)
        try:
            output.skip(users)
            stream = _stream(client, users, options, arguments, output.progress.base_release)
            summary = _copy(stream, output, meter)
        except DataLoss:
            meter.end()
            output.abandon()
            raise
        except (SegrecError, KeyboardInterrupt, OSError):
            meter.end()
            _suspend(output)
            raise
        meter.end()
        output.finish()
    _report(output, summary, meter, as_json=options.json)
    if output.progress.failed_count:
        return ROWS_FAILED
    return ROWS_DEGRADED if output.progress.degraded_count else OK


def _stream(
    client: SegrecClient,
    users: Iterator[str],
    options: argparse.Namespace,
    arguments: RecommendArguments,
    base_release: int,
) -> RowStream[SegmentRow] | RowStream[RecommendRow]:
    stall_seconds = options.timeout or STALL_SECONDS
    if options.recommend:
        return client.stream_recommend(
            users,
            release=options.release,
            chunk_size=options.chunk_size,
            stall_seconds=stall_seconds,
            base_release=base_release,
            **arguments,
        )
    return client.stream_segment(
        users,
        release=options.release,
        chunk_size=options.chunk_size,
        stall_seconds=stall_seconds,
        base_release=base_release,
    )


def _copy(
    stream: RowStream[SegmentRow] | RowStream[RecommendRow], output: Output, meter: "Meter"
) -> StreamSummary | None:
    with closing(stream):
        for rows in stream.chunks():
            output.write(rows, stream.base_release)
            meter.show()
    return stream.summary


def _suspend(output: Output) -> None:
    with suppress(OSError):
        output.suspend()
    written_count = output.progress.read_count
    if not written_count:
        return
    command = shlex.join(argument for argument in sys.argv[1:] if argument != "--resume")
    complain(f"{written_count:,} users are written; continue with:", f"  segrec {command} --resume")


def _report(output: Output, summary: StreamSummary | None, meter: "Meter", *, as_json: bool) -> None:
    progress = output.progress
    record = {
        "read": progress.read_count,
        "answered": progress.answered_count,
        "failed": progress.failed_count,
        "degraded": progress.degraded_count,
        "no_history": progress.no_history_count,
        "resumed_after": output.resumed_count,
        "server_received": summary.received_count if summary else 0,
        "server_answered": summary.answered_count if summary else 0,
        "server_failed": summary.failed_count if summary else 0,
        "seconds": round(meter.seconds, 3),
        "out": str(output.path),
    }
    if progress.degraded_count:
        complain(
            f"segrec: {progress.degraded_count:,} of {progress.read_count:,} users have a degraded answer (column "
            "`degraded`, the cause in `reason`): the server's encoder or history store did not answer, twice. "
            "Run the same command again without --resume, or stream only these users"
        )
    if as_json:
        say(json_line(record))
        return
    if progress.no_history_count:
        complain(
            f"segrec: {progress.no_history_count:,} of {progress.read_count:,} users have no history (column `state`): "
            "they are new, or the file writes their ids in another way than the events do"
        )
    say(
        f"{output.path}: read {progress.read_count:,} = answered {progress.answered_count:,} "
        f"+ failed {progress.failed_count:,}; degraded {progress.degraded_count:,}; "
        f"the server's own counts agree ({record['server_received']:,} on the last connection); "
        f"{meter.seconds:.1f} s, {meter.rate:,.0f} users/s"
    )


class Meter:
    """Shows progress on stderr: one changing line on a terminal, otherwise a new line every ten seconds."""

    def __init__(self, source: InputFile, output: Output) -> None:
        self._source = source
        self._output = output
        self._is_terminal = sys.stderr.isatty()
        self._start_time = self._shown_time = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the start of this run."""
        return time.monotonic() - self._start_time

    @property
    def rate(self) -> float:
        """Users per second in this run."""
        return (self._output.progress.read_count - self._output.resumed_count) / max(self.seconds, 1e-9)

    def show(self) -> None:
        """Prints the progress when the last line is old enough."""
        now = time.monotonic()
        if now - self._shown_time < (_TERMINAL_SECONDS if self._is_terminal else _LOG_SECONDS):
            return
        self._shown_time = now
        print(self._line(), end="" if self._is_terminal else "\n", file=sys.stderr, flush=True)

    def _line(self) -> str:
        fraction = self._source.fraction
        share = f"{fraction:4.0%}  " if fraction is not None else ""
        progress = self._output.progress
        text = f"{share}{progress.read_count:,} users  {self.rate:,.0f}/s  {progress.failed_count:,} failed"
        return f"\r\x1b[K{text}" if self._is_terminal else text

    def end(self) -> None:
        """Clears the line on a terminal."""
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
