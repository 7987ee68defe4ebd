"""The split into training, validation and test events: by each user's last visits or events, or by time."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from training.config import SplitSettings
from training.errors import ConfigError
from training.runs import write_atomically

_FILE = "split.json"


@dataclass(frozen=True, slots=True)
class Split:
    """A split by two times in milliseconds, or, if both are 0, by each user's last visits or last events.

    By time, events before `validation_from` are for training, events from `test_from` on are for the test, and the
    events in between validate, for instance to choose the epoch. Otherwise each user's last visit (`by_visit`) or event
    (leave-one-out) is for the test, and the one before it validates.
    """

    validation_from: int = 0
    test_from: int = 0
    by_visit: bool = False

    @property
    def by_time(self) -> bool:
        """Whether it is a split by time."""
        return self.validation_from != 0

    def training_part(self, events: pl.LazyFrame) -> pl.LazyFrame:
        """The training events of `events`, which are sorted by user_id, then time.

        Other splits hold back the last two events of each user here; `EventLog.train_ends` holds back whole visits.
        """
        if self.by_time:
            return events.filter(pl.col("timestamp") < self.validation_from)
        return events.filter((pl.col("user_id") == pl.col("user_id").shift(-2)).fill_null(False))

    def periods(self) -> list[pl.Expr]:
        """Expressions to group events by period of a split by time; empty for leave-one-out."""
        moments = (self.validation_from, self.test_from) if self.by_time else ()
        return [pl.col("timestamp") < moment for moment in moments]

    def describe(self) -> str:
        """The split as a phrase for people."""
        if not self.by_time:
            return "last visits" if self.by_visit else "leave-one-out"
        return f"time split: training before {_day(self.validation_from)}, test from {_day(self.test_from)} on"


LEAVE_ONE_OUT = Split()


def choose_split(settings: SplitSettings, timestamps: pl.Series, has_clock: bool, now_ms: int) -> Split:
    """The split of a log with these times in milliseconds; ignores impossible times and those in the future.

    `auto` is leave-one-out until the visits of the log are known. Without `test_from` in the settings, the newest
    `test_share` of events is for the test. The newest `test_share` of the remaining events validates. Raises
    ConfigError for a log without a clock, or if a part would have no events.
    """
    if settings.method != "time":
        return Split(by_visit=settings.method == "visits")
    if not has_clock:
        raise ConfigError("[split] method is time, but this log has no clock; use leave_one_out.")
    times = timestamps.drop_nulls()
    times = times.filter(times.is_between(0, now_ms)).sort()
    if times.is_empty():
        raise ConfigError("[split] method is time, but this log has no event with a time in the past.")
    if settings.test_from is None:
        test_from = int(times[int(len(times) * (1 - settings.test_share))])
    else:
        moment = settings.test_from
        test_from = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    before = times.filter(times < test_from)
    if before.is_empty() or len(before) == len(times):
        raise ConfigError(
            f"[split] test_from {_day(test_from)} leaves no event before or after this time; the log runs from "
            f"{_day(times[0])} to {_day(times[-1])}."
        )
    validation_from = int(before[int(len(before) * (1 - settings.test_share))])
    if validation_from <= times[0]:
        raise ConfigError("[split] leaves no events to train on: too many events have the same time. Lower test_share.")
    return Split(validation_from, test_from)


def write_split(directory: Path, split: Split) -> None:
    """Write the split into the directory of the prepared data."""
    write_atomically(directory / _FILE, json.dumps(asdict(split)) + "\n")


def read_split(prepared: Path) -> Split:
    """The split in the directory of the prepared data; leave-one-out if there is no split file."""
    path = prepared / _FILE
    return Split(**json.loads(path.read_bytes())) if path.is_file() else Split()


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
