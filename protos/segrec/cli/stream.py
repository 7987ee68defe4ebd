"""`segrec stream`: reads users from a file, streams them, and writes one row or more per user to a file or a pipe."""

import argparse
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segrec.cli.exit_codes import OK, ROWS_DEGRADED, ROWS_FAILED
from segrec.cli.files.failed_rows import is_good
from segrec.cli.files.input_file import InputFile, InputUser, address_problem, is_address
from segrec.cli.files.output_file import Output
from segrec.cli.files.output_pipe import OutputPipe
from segrec.cli.files.reading_options import rules_of
from segrec.cli.files.row_formats import Answer, Row
from segrec.cli.records import json_line, message_of
from segrec.cli.segment_changes import EarlierSegments, fingerprint
from segrec.cli.stream_counts import Meter, StreamCounts
from segrec.cli.terminal import complain, say
from segrec.client import SegrecClient
from segrec.errors import DataLoss, InvalidArgument, SegrecError
from segrec.names import warning_sentence
from segrec.requests import RecommendArguments
from segrec.streaming import RowStream
from segrec.v1.segrec_service_pb2 import RecommendRow, SegmentRow, StreamSummary
from segrec.window import STALL_SECONDS

_MAX_PRINTED_FAILURES = 20
RowsStream = RowStream[SegmentRow] | RowStream[RecommendRow]


def stream_users(client: SegrecClient, options: argparse.Namespace, arguments: RecommendArguments) -> int:
    """Runs the command and returns its exit code. Raises SegrecError; all but DataLoss leave a run to resume."""
    _check(options)
    earlier = EarlierSegments(options.since) if options.since else None
    with InputFile(options.users, rules_of(options)) as source:
        output = _output(options, arguments)
        meter = Meter(output.resumed_count)
        users = _Users(source, options.max_rate)
        copier = _Copier(users, output, meter, earlier)
        try:
            users.skip(output)
            stream = _stream(client, users, options, arguments, output.progress.base_release)
            summary = copier.copy(stream)
            meter.end()
            output.finish()
        except DataLoss:
            meter.end()
            output.abandon()
            raise
        except (SegrecError, KeyboardInterrupt, OSError):
            meter.end()
            output.suspend()
            if isinstance(output, Output):
                _say_how_to_resume(output)
            raise
    _report(output, summary, meter, options)
    counts = output.progress.counts
    if counts.failed:
        return ROWS_FAILED
    return ROWS_DEGRADED if options.max_degraded.is_exceeded(counts.degraded, counts.read) else OK


def _check(options: argparse.Namespace) -> None:
    for path in filter(is_address, (options.out, options.failed)):
        raise InvalidArgument(address_problem(path))
    if options.out == "-" and options.resume:
        raise InvalidArgument("--resume needs a file: what went to standard output is not kept")
    if (options.out == "-") != bool(options.format):
        raise InvalidArgument("--format (csv, ndjson or arrow) belongs to `--out -`; a file's suffix says its format")
    if options.since and options.recommend:
        raise InvalidArgument("--since compares segments: leave out --recommend")


def _output(options: argparse.Namespace, arguments: RecommendArguments) -> Output | OutputPipe:
    request: dict[str, Any] = {
        "recommend": options.recommend,
        "release": options.release,
        "choice": arguments,
        "since": fingerprint(options.since) if options.since else "",
        "failed": options.failed,
    }
    run_time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    failed = Path(options.failed) if options.failed else None
    if options.out == "-":
        return OutputPipe(options.format, failed, request, run_time, force=options.force)
    return Output(Path(options.out), failed, request, run_time, resume=options.resume, force=options.force)


class _Users:
    """The user ids of the input for the stream, at most `max_rate` a second, and the places of those on their way."""

    def __init__(self, source: InputFile, max_rate: float | None) -> None:
        self._source = source
        self._users = source.users()
        self._max_rate = max_rate
        self._on_their_way: deque[InputUser] = deque()

    @property
    def count(self) -> int:
        """Number of users in the input, once the first one is read."""
        return self._source.user_count

    def skip(self, output: Output | OutputPipe) -> None:
        """Skips the users that the output holds."""
        output.skip(user.user_id for user in self._users)

    def __iter__(self) -> Iterator[str]:
        start_time = time.monotonic()
        for number, user in enumerate(self._users):
            if self._max_rate:
                # Sleeps until this user's turn; the answers of users sent before wait in the connection meanwhile.
                time.sleep(max(0.0, start_time + number / self._max_rate - time.monotonic()))
            self._on_their_way.append(user)
            yield user.user_id

    def take(self, count: int) -> list[InputUser]:
        """The next users whose rows have come."""
        return [self._on_their_way.popleft() for _ in range(count)]


class _Copier:
    """Copies the rows of a stream to the output."""

    def __init__(
        self, users: _Users, output: Output | OutputPipe, meter: Meter, earlier: EarlierSegments | None
    ) -> None:
        self._users, self._output, self._meter, self._earlier = users, output, meter, earlier
        self._printed_count = 0

    def copy(self, stream: RowsStream) -> StreamSummary | None:
        """Copies all rows; returns the server's counts."""
        with closing(stream):
            for rows in stream.chunks():
                self._write(rows, stream.base_release)
                self._meter.show(self._output.progress.counts, self._users.count)
        for warning in stream.warnings:
            complain(f"segrec: warning: {warning_sentence(warning)}")
        return stream.summary

    def _write(self, rows: Sequence[Row], base_release: int) -> None:
        users = self._users.take(len(rows))
        answers = [Answer(row, self._extra(row, user)) for row, user in zip(rows, users, strict=True)]
        written = answers
        if self._earlier:
            written = [answer for answer in answers if self._earlier.is_change(answer.row)]
        for answer, user in zip(answers, users, strict=True):
            if not is_good(answer):
                self._complain(answer.row, user)
        counts = self._output.progress.counts.plus(rows, len(written) if self._earlier else 0)
        self._output.write(answers, written, counts, base_release)

    def _extra(self, row: Row, user: InputUser) -> dict[str, Any]:
        extra: dict[str, Any] = {"input_row": user.number, "run_time": self._output.progress.run_time}
        if self._earlier:
            extra["previous_segment_id"] = self._earlier.previous(row.user_id)
        return extra

    def _complain(self, row: Row, user: InputUser) -> None:
        """Names the first failed users by their place in the file; the outputs have all of them."""
        if not row.HasField("status"):
            return
        self._printed_count += 1
        if self._printed_count <= _MAX_PRINTED_FAILURES:
            complain(f"{user.place}: {message_of(row)}")
        elif self._printed_count == _MAX_PRINTED_FAILURES + 1:
            complain("More users fail; their rows say why (column `message`), and `--failed FILE` collects them")


def _stream(
    client: SegrecClient,
    users: _Users,
    options: argparse.Namespace,
    arguments: RecommendArguments,
    base_release: int,
) -> RowsStream:
    stall_seconds = options.timeout or STALL_SECONDS
    # At a low rate, a full chunk would be sent seconds after its first user was read.
    chunk_size = min(options.chunk_size, max(1, int(options.max_rate))) if options.max_rate else options.chunk_size
    if options.recommend:
        return client.stream_recommend(
            users,
            release=options.release,
            chunk_size=chunk_size,
            stall_seconds=stall_seconds,
            base_release=base_release,
            **arguments,
        )
    return client.stream_segment(
        users,
        release=options.release,
        chunk_size=chunk_size,
        stall_seconds=stall_seconds,
        base_release=base_release,
    )


def _say_how_to_resume(output: Output) -> None:
    written_count = output.progress.counts.read
    if not written_count:
        return
    command = shlex.join(argument for argument in sys.argv[1:] if argument not in ("--resume", "--force"))
    complain(f"{written_count:,} users are written; continue with:", f"  segrec {command} --resume")


def _report(
    output: Output | OutputPipe, summary: StreamSummary | None, meter: Meter, options: argparse.Namespace
) -> None:
    progress, counts = output.progress, output.progress.counts
    tell = complain if options.out == "-" else say
    _warn(counts, options)
    if not options.json:
        tell(*_sentences(output, summary, meter, since=options.since))
        return
    record = {
        "read": counts.read,
        "answered": counts.answered,
        "failed": counts.failed,
        "degraded": counts.degraded,
        "no_history": counts.no_history,
        "changed": counts.changed if options.since else None,
        "releases": counts.releases,
        "run_time": progress.run_time,
        "resumed_after": output.resumed_count,
        "server_received": summary.received_count if summary else 0,
        "server_answered": summary.answered_count if summary else 0,
        "server_failed": summary.failed_count if summary else 0,
        "seconds": round(meter.seconds, 3),
        "out": str(output.path),
        "failed_out": options.failed,
    }
    tell(json_line(record))


def _sentences(output: Output | OutputPipe, summary: StreamSummary | None, meter: Meter, *, since: str) -> list[str]:
    """What was read, answered and written, and by which releases."""
    counts = output.progress.counts
    received_count = summary.received_count if summary else 0
    releases = ", ".join(f"release {number} ({count:,})" for number, count in sorted(counts.releases.items()))
    changes = [f"{counts.changed:,} users changed segment since {since}; only these are written"] if since else []
    return [
        *changes,
        f"{output.path}: read {counts.read:,} = answered {counts.answered:,} "
        f"+ failed {counts.failed:,}; degraded {counts.degraded:,}; answered by {releases or 'no release'}; "
        f"the server's own counts agree ({received_count:,} on the last connection); "
        f"{meter.seconds:.1f} s, {meter.rate(counts):,.0f} users/s",
    ]


def _warn(counts: StreamCounts, options: argparse.Namespace) -> None:
    if counts.degraded:
        again = f"--users {shlex.quote(options.failed)}" if options.failed else "--failed FILE, then --users FILE"
        complain(
            f"segrec: {counts.degraded:,} of {counts.read:,} users have a degraded answer (column `degraded`, the "
            "cause in `reason`): the server's encoder or history store did not answer, twice. "
            f"To ask for these users again: {again}"
        )
    if counts.no_history and not options.json:
        complain(
            f"segrec: {counts.no_history:,} of {counts.read:,} users have no history (column `state`): "
            "they are new, or the file writes their ids in another way than the events do"
        )
