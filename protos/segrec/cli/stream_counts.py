"""What a run of `segrec stream` has done so far, as numbers and as a line of progress."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from segrec.cli.files.row_formats import Row
from segrec.v1.segrec_service_pb2 import SegmentState

_TERMINAL_SECONDS = 0.2
_LOG_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """Numbers of users. `read` = `answered` + `failed`; the other numbers are parts of `answered`."""

    read: int = 0
    answered: int = 0
    failed: int = 0
    degraded: int = 0
    no_history: int = 0
    changed: int = 0
    """Answered, and in another segment than in the earlier file."""
    releases: dict[str, int] = field(default_factory=dict)
    """Answered users by the number of the release that answered."""

    def plus(self, rows: Sequence[Row], changed: int) -> "StreamCounts":
        """The counts with these rows added."""
        results = [row.result for row in rows if row.HasField("result")]
        releases = Counter(str(result.info.release) for result in results)
        no_history = SegmentState.SEGMENT_STATE_NO_HISTORY
        return StreamCounts(
            read=self.read + len(rows),
            answered=self.answered + len(results),
            failed=self.failed + len(rows) - len(results),
            degraded=self.degraded + sum(result.info.degraded for result in results),
            no_history=self.no_history + sum(result.assignment.state == no_history for result in results),
            changed=self.changed + changed,
            releases=dict(Counter(self.releases) + releases),
        )


class Meter:
    """Shows progress on stderr: one changing line on a terminal, otherwise a new line every ten seconds."""

    def __init__(self, resumed_count: int) -> None:
        """`resumed_count`: users that an earlier, interrupted run has written."""
        self._resumed_count = resumed_count
        self._is_terminal = sys.stderr.isatty()
        self._start_time = self._shown_time = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the start of this run."""
        return time.monotonic() - self._start_time

    def rate(self, counts: StreamCounts) -> float:
        """Users per second in this run."""
        return (counts.read - self._resumed_count) / max(self.seconds, 1e-9)

    def show(self, counts: StreamCounts, user_count: int) -> None:
        """Prints the progress when the last line is old enough. `user_count`: users in the input."""
        now = time.monotonic()
        if now - self._shown_time < (_TERMINAL_SECONDS if self._is_terminal else _LOG_SECONDS):
            return
        self._shown_time = now
        text = progress_line(counts, user_count, self.rate(counts))
        line = f"\r\x1b[K{text}" if self._is_terminal else text
        print(line, end="" if self._is_terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Clears the line on a terminal."""
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def progress_line(counts: StreamCounts, user_count: int, rate: float) -> str:
    """How much is done, how fast, how much is wrong so far, and when the rest will be done at this rate."""
    left = max(user_count - counts.read, 0)
    remaining = f"  about {_duration(left / rate)} left" if rate > 0 and left else ""
    share = counts.read / user_count if user_count else 1.0
    return (
        f"{share:4.0%}  {counts.read:,} of {user_count:,} users  {rate:,.0f}/s  {counts.failed:,} failed  "
        f"{counts.degraded:,} degraded{remaining}"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes >= 10 else f"{minutes} min {rest} s" if minutes else f"{rest} s"
