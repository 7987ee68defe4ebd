"""Events that may not be learned from: those before a user's erasure, and those older than the retention.

They are left out before the log is cleaned, so that no statistic of the cleaning knows them.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import polars as pl

from server.core.erasure import ErasureMarks
from server.core.errors import SetupError
from training.data.account import Step, dropping_step
from training.data.cleaning import DAY_MS
from training.data.reading.log_reader import RawLog
from training.errors import ConfigError, LogError

ERASED, EXPIRED = "erased", "older than the retention"
"""Names of the steps in the account."""

Erasures = Callable[[str], int | None]
"""The time of a user's erasure, milliseconds since 1970, which all events of the user before it share; None for users
who were not erased."""


def erased_at(user_ids: Iterable[str], time_ms: int) -> Erasures:
    """The erasure of these users at one time, milliseconds since 1970."""
    return dict.fromkeys(user_ids, time_ms).get


def read_erasures(path: Path) -> Erasures:
    """The erasures of a history store, from a file that `segrec-store export-erasures` wrote.

    Their times have no fraction, so all events of the second of an erasure count as before it. Raises ConfigError.
    """
    try:
        marks = ErasureMarks.read(path)
    except SetupError as error:
        raise ConfigError(f"--erasures: {error}.") from error
    except OSError as error:
        raise ConfigError(f"--erasures: {path} cannot be read: {error.strerror}.") from error

    def erased_ms(user_id: str) -> int | None:
        seconds = marks.erased_seconds(user_id)
        return None if seconds is None else (seconds + 1) * 1000

    return erased_ms


def both(first: Erasures, second: Erasures) -> Erasures:
    """The later erasure of each user."""

    def later(user_id: str) -> int | None:
        times = [time for time in (first(user_id), second(user_id)) if time is not None]
        return max(times, default=None)

    return later


def erasures_of(user_ids: pl.Series, erasures: Erasures) -> dict[str, int]:
    """The time of erasure, milliseconds since 1970, of those among distinct `user_ids` (text) who were erased."""
    times = ((user_id, erasures(user_id)) for user_id in user_ids)
    return {user_id: time for user_id, time in times if time is not None}


def is_erased(times: dict[str, int], has_clock: bool) -> pl.Expr:
    """Whether an event (user_id, timestamp) happened before its user's erasure in `times`.

    Without a clock, or without a time, no event is known to be later, so all events of an erased user are erased.
    """
    if not times:
        return pl.lit(False)
    user_id = pl.col("user_id").cast(pl.String)
    erased = user_id.is_in(list(times))
    if not has_clock:
        return erased
    time = user_id.replace_strict(times, default=None, return_dtype=pl.Int64)
    return erased & (pl.col("timestamp") < time).fill_null(True)


def leave_out(
    log: RawLog, erasures: Erasures | None, retention_days: int | None, now_ms: int
) -> tuple[RawLog, tuple[Step, ...]]:
    """The log without erased and expired events, and a step of the account for each of the two that is asked for.

    Raises ConfigError for a retention of a log without a clock, LogError if no event is left.
    """
    events, steps = log.events, []
    if erasures is not None:
        ids = events["user_id"].unique().drop_nulls().cast(pl.String)
        kept = events.filter(~is_erased(erasures_of(ids, erasures), log.has_clock).fill_null(False))
        why = "of erased users" if not log.has_clock else "of erased users, from before the erasure"
        steps.append(dropping_step(ERASED, events, kept, why))
        events = kept
    if retention_days is not None:
        if not log.has_clock:
            raise ConfigError("[privacy] retention_days needs times, but this log has no clock; leave it out.")
        kept = events.filter((pl.col("timestamp") >= now_ms - retention_days * DAY_MS).fill_null(True))
        why = f"more than {retention_days:,} days ago"
        steps.append(dropping_step(EXPIRED, events, kept, why))
        events = kept
    if events.is_empty():
        dropped = " and ".join(f"{step.rows_dropped:,} are {step.name}" for step in steps)
        raise LogError(f"None of {len(log.events):,} events is left to learn from: {dropped}.")
    return replace(log, events=events), tuple(steps)
