"""What reports and releases say of the log of a run, and when it must be forgotten."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import polars as pl

from server.core.release import TrainedOn
from server.core.repository.layout import read_preprocessing
from training.runs import Run

_ROLES = ("events", "items", "users", "vectors")


@dataclass(frozen=True, slots=True)
class Origin:
    """The log of a run, and the time from which all its events are older than the run's retention, if it has one."""

    trained_on: TrainedOn
    forget_after: datetime | None

    @classmethod
    def of(cls, run: Run, prepared: Path) -> Self:
        """Of a run whose prepared log is in the directory `prepared`. Raises RunError for a damaged record."""
        has_clock = read_preprocessing(prepared).has_clock
        counted = pl.scan_parquet(prepared / "events.parquet").select(
            pl.col("timestamp").min().alias("first"),
            pl.col("timestamp").max().alias("last"),
            pl.col("user_id").n_unique(),
            pl.len(),
        )
        first, last, users, events = counted.collect().row(0)
        data = run.record()["data"]
        trained_on = TrainedOn(
            first_event_time=_time(first) if has_clock else None,
            last_event_time=_time(last) if has_clock else None,
            user_count=users,
            event_count=events,
            files=tuple(data[role]["file"] for role in _ROLES if role in data),
        )
        days = run.config().privacy.retention_days
        last_time = trained_on.last_event_time
        return cls(trained_on, last_time + timedelta(days=days) if last_time and days else None)


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
