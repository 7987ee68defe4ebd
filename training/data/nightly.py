"""A night's log together with the events that an earlier run kept, so that old logs need not be read again.

A run that is asked to keeps its events as they were before cleaning. What cleaning drops, fills in and learns depends
on all events, so only from those the next night gets what it would get from both logs at once.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from server.core.repository.layout import read_preprocessing
from training.config import Config
from training.data.account import Step, lowest
from training.data.reading.log_reader import RawLog
from training.errors import ConfigError, LogError
from training.runs import Run, earlier_runs

RAW_EVENTS = "raw_events.parquet"
"""File in `prepare/` with the events before cleaning, in the order of the logs; times and ids may be missing."""

START, LAST = "start", "last"
_KEY = ("user_id", "item_id", "action", "value", "timestamp")


@dataclass(frozen=True, slots=True)
class Continued:
    """A log together with the events of an earlier run, the steps that put them together, and notes for the account."""

    log: RawLog
    earlier: Run | None = None
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()


def check_since(since: str) -> None:
    """Raises ConfigError unless `since` is `start`, `last` or a time in ISO 8601."""
    if since not in (START, LAST):
        _milliseconds(since)


def continued(log: RawLog, since: str, run: Run, config: Config, has_erasures: bool, now_ms: int) -> Continued:
    """The log and the events that the newest earlier run keeps, as `since` says.

    `start`: the log alone. `last`: all events of that run, and those of the log that it does not have; equal events are
    the same event. A time: the run's events from before it, and the log's events from it on. Raises ConfigError and
    LogError if there is no such run, or if its events do not go together with the log.
    """
    if not log.has_clock:
        raise ConfigError(
            "--since needs a log with times, and this log has no clock; prepare the whole log without it."
        )
    if since == START:
        return Continued(log)
    earlier = _earlier(run, config, has_erasures)
    kept = pl.read_parquet(earlier.path / "prepare" / RAW_EVENTS)
    before, new = _same_types(kept, log.events)
    if since == LAST:
        return _added(log, before, new, earlier, now_ms)
    return _replaced(log, before, new, earlier, since)


def account_of_reading(log: RawLog, night: Continued) -> tuple[int, tuple[Step, ...]]:
    """All rows, of the files of `log` and of the earlier run, and the steps that make the events of `night` of them."""
    earlier_rows = night.steps[0].rows_in - len(log.events) if night.steps else 0
    read = (step.model_copy(update={"rows_in": step.rows_in + earlier_rows}) for step in log.steps)
    return log.row_count + earlier_rows, (*read, *night.steps)


def write_raw_events(log: RawLog, directory: Path, since: str | None) -> None:
    """Keep the events of a log, which erasures and retention have left in, for later nights if `since` is given."""
    path = directory / RAW_EVENTS
    path.unlink(missing_ok=True)
    if since is not None:
        log.events.lazy().select(pl.col(_KEY[:3]).cast(pl.String), *_KEY[3:]).sink_parquet(path, compression="lz4")


def watermark_ms(events: pl.DataFrame, now_ms: int) -> int | None:
    """The time of the newest event, milliseconds since 1970; times in the future do not count."""
    newest: int | None = events.select(pl.col("timestamp").filter(pl.col("timestamp") <= now_ms).max()).item()
    return newest


def _earlier(run: Run, config: Config, has_erasures: bool) -> Run:
    earlier = next((other for other in earlier_runs(run) if (other.path / "prepare" / RAW_EVENTS).is_file()), None)
    if earlier is None:
        raise ConfigError(
            f"No earlier run under {run.path.parent} keeps its events; prepare the whole log once with --since {START}."
        )
    if earlier.config().columns != config.columns:
        raise ConfigError(
            f"[columns] has changed since {earlier.path} read its events; prepare the whole log once more with "
            f"--since {START}."
        )
    if not has_erasures and "erasures" in earlier.record()["data"]:
        raise ConfigError(f"{earlier.path} left out erased users; give the file with --erasures again.")
    if not read_preprocessing(earlier.path / "prepare").has_clock:
        raise ConfigError(f"{earlier.path} has no clock; prepare the whole log once more with --since {START}.")
    return earlier


def _same_types(before: pl.DataFrame, new: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both with the same Enums, which sort like the texts; events of an earlier run have no row number."""
    enums = {}
    for name in _KEY[:3]:
        texts = [frame[name].unique().drop_nulls().cast(pl.String) for frame in (before, new)]
        enums[name] = pl.Enum(pl.concat(texts).unique().sort())
    casts = [pl.col(name).cast(pl.String).cast(enum) for name, enum in enums.items()]
    without_row = before.with_columns(*casts, pl.lit(None, new.schema["row"]).alias("row"))
    return without_row.select("row", *_KEY), new.with_columns(casts).select("row", *_KEY)


def _added(log: RawLog, before: pl.DataFrame, new: pl.DataFrame, earlier: Run, now_ms: int) -> Continued:
    name = earlier.path.name
    known = _are_in(new, before)
    added = new.filter(~known)
    newest = watermark_ms(before, now_ms)
    late = 0 if newest is None else int((added["timestamp"] < newest).sum())
    notes = [f"since {LAST}: {len(added):,} new events after the {len(before):,} that {name} keeps"]
    if newest is not None and late:
        notes.append(f"{late:,} late events, from before {time_text(newest)} and not in {name}, are kept")
    rows_in = len(before) + len(new)
    step = Step(
        name="read before",
        rows_in=rows_in,
        rows_dropped=int(known.sum()),
        why=f"equal to events of {name}",
        first_rows=lowest([new["row"].filter(known)]),
    )
    return Continued(replace(log, events=pl.concat([before, added])), earlier, (step,), tuple(notes))


def _replaced(log: RawLog, before: pl.DataFrame, new: pl.DataFrame, earlier: Run, since: str) -> Continued:
    name, from_ms = earlier.path.name, _milliseconds(since)
    is_earlier, has_time = pl.col("timestamp") < from_ms, pl.col("timestamp").is_not_null()
    old = before.filter(is_earlier | ~has_time)
    known = _are_in(new, old)
    is_skipped = new.select((is_earlier & has_time) | (~has_time & known)).to_series()
    kept, skipped = new.filter(~is_skipped), new.filter(is_skipped)
    if kept.is_empty():
        raise LogError(f"None of the log's {len(new):,} events is from {time_text(from_ms)} on; lower --since.")
    late = len(skipped) - int(known.sum())
    notes = [f"since {time_text(from_ms)}: {len(kept):,} events of the log after {len(old):,} that {name} keeps"]
    if late:
        notes.append(
            f"{late:,} late events, from before {time_text(from_ms)} and not in {name}, are left out; "
            f"--since {LAST} keeps them"
        )
    rows_in, replaced = len(before) + len(new), len(before) - len(old)
    steps = (
        Step(name="replaced", rows_in=rows_in, rows_dropped=replaced, why=f"events of {name} from that time on"),
        Step(
            name="before --since",
            rows_in=rows_in - replaced,
            rows_dropped=len(skipped),
            why=f"events of the log, of which {len(skipped) - late:,} are in {name}",
            first_rows=lowest([skipped["row"]]),
        ),
    )
    return Continued(replace(log, events=pl.concat([old, kept])), earlier, steps, tuple(notes))


def _are_in(events: pl.DataFrame, others: pl.DataFrame) -> pl.Series:
    """Whether each event is among `others`; of equal events, as many as are there."""
    newest = others["timestamp"].max()
    is_later = pl.lit(False) if newest is None else pl.col("timestamp") > newest
    numbered = events.with_row_index("place").filter(~is_later.fill_null(False))
    oldest = numbered["timestamp"].min()
    is_older = pl.lit(False) if oldest is None else pl.col("timestamp") < oldest
    others = others.filter(~is_older.fill_null(False))
    copies = pl.int_range(pl.len()).over(_KEY).alias("copy")
    found = numbered.with_columns(copies).join(
        others.with_columns(copies), on=[*_KEY, "copy"], how="semi", nulls_equal=True
    )
    return pl.repeat(False, len(events), eager=True).scatter(found["place"], True)


def _milliseconds(since: str) -> int:
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        raise ConfigError(
            f"--since must be `{START}`, `{LAST}` or a time such as 2026-11-01 or 2026-11-01T06:00Z, not `{since}`."
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def time_text(ms: int) -> str:
    """A time in milliseconds since 1970 as ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
