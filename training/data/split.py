"""Which events training may see: all but the last of each user, or all before a time."""

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
    """Leave-one-out where both are 0, or two times in milliseconds.

    Training ends before `validation_from`, test targets begin with `test_from`, and what lies between chooses the
    epoch.
    """

    validation_from: int = 0
    test_from: int = 0

    @property
    def by_time(self) -> bool:
        """Whether it is a split by time."""
        return self.validation_from != 0

    def training_part(self, events: pl.LazyFrame) -> pl.LazyFrame:
        """Those of sorted `events` (user_id, then time) that training may see.

        Leave-one-out holds back the last two events of each user.
        """
        if self.by_time:
            return events.filter(pl.col("timestamp") < self.validation_from)
        return events.filter((pl.col("user_id") == pl.col("user_id").shift(-2)).fill_null(False))

    def periods(self) -> list[pl.Expr]:
        """What tells the periods of a split by time apart; nothing for leave-one-out."""
        moments = (self.validation_from, self.test_from) if self.by_time else ()
        return [pl.col("timestamp") < moment for moment in moments]

    def in_words(self) -> str:
        """For people."""
        if not self.by_time:
            return "leave-one-out"
        return f"time split: training before {_day(self.validation_from)}, test from {_day(self.test_from)} on"


LEAVE_ONE_OUT = Split()


def choose_split(settings: SplitSettings, timestamps: pl.Series, has_clock: bool, now_ms: int) -> Split:
    """The split of a log with these times in milliseconds, nulls and times in the future aside.

    Without a time of its own, the newest `test_share` of events is the test part; the period before it, with a share
    as large of what is left, validates. Raises ConfigError for a log without a clock, or without events on both sides.
    """
    if settings.method == "leave_one_out":
        return Split()
    if not has_clock:
        raise ConfigError("[split] method is time, and this log has no clock; use leave_one_out.")
    times = timestamps.drop_nulls()
    times = times.filter(times <= now_ms).sort()
    if times.is_empty():
        raise ConfigError("[split] method is time, and no event of this log has a time that is past.")
    if settings.test_from is None:
        test_from = int(times[int(len(times) * (1 - settings.test_share))])
    else:
        given = settings.test_from
        test_from = round((given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp() * 1000)
    before = times.filter(times < test_from)
    if before.is_empty() or len(before) == len(times):
        raise ConfigError(
            f"[split] test_from {_day(test_from)} leaves no event on one side; the log runs from "
            f"{_day(times[0])} to {_day(times[-1])}."
        )
    validation_from = int(before[int(len(before) * (1 - settings.test_share))])
    if validation_from <= times[0]:
        raise ConfigError("[split] leaves no time to train on: too many events happened at once. Lower test_share.")
    return Split(validation_from, test_from)


def write_split(directory: Path, split: Split) -> None:
    """Note the split among the prepared data."""
    write_atomically(directory / _FILE, json.dumps(asdict(split)) + "\n")


def read_split(prepared: Path) -> Split:
    """The split that `prepare` noted; leave-one-out where it noted none."""
    path = prepared / _FILE
    return Split(**json.loads(path.read_bytes())) if path.is_file() else Split()


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
