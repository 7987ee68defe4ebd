"""Nights that each read their own log give what all logs at once give."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from server.core.erasure import ErasureMarks, new_erasure_key
from tests.support.logs import DAY_MS, START_MS, planted_log
from training.config import Clean, Columns, Config, PrivacySettings, SplitSettings, VisitSettings
from training.data.account import Account
from training.data.nightly import RAW_EVENTS
from training.data.prepare import PrepareResult, prepare
from training.errors import ConfigError, LogError
from training.runs import Run, earlier_runs

NIGHTS = 4
CONFIG = Config(
    clean=Clean.model_validate(
        {
            "missing": {"value": "median"},
            "outliers": "iqr",
            "min_events_per_user": 5,
            "min_events_per_item": 4,
        }
    ),
    split=SplitSettings(method="time"),
)


def whole_log() -> pl.DataFrame:
    """Four days of events in order of time, which every step of cleaning drops or changes some of."""
    events, _ = planted_log(users=40, items=12, events_per_user=24, noise=0.5)
    number, user, hour = pl.int_range(pl.len()), pl.col("user_id").str.slice(1).cast(pl.Int64), pl.col("timestamp")
    events = events.with_columns(
        pl.when(number % 7 > 0).then("value"),
        pl.when(number % 31 > 0).then("item_id"),
        ((hour - START_MS) // 60_000 * 4 * 60_000 + START_MS).alias("timestamp"),
    )
    turn = number.over("user_id")
    share = (
        pl.when(user % 5 == 0).then(3).when(user % 5 == 1).then(8).otherwise(1)
    )  # some come seldom, and a few hardly
    events = events.filter(turn % share == 0)
    odd = events.head(3).with_columns(timestamp=pl.Series([None, -5, 4_000_000_000_000]))
    return pl.concat([odd, events, events.gather_every(50)]).sort("timestamp", maintain_order=True, nulls_last=True)


def night_of() -> pl.Expr:
    """The night, from 0, whose export has an event: that of its day; times that are none come with the first."""
    day = (pl.col("timestamp") - START_MS) // DAY_MS
    return pl.when(day.is_between(0, NIGHTS - 1)).then(day).otherwise(0)


def prepared(tmp_path: Path, log: pl.DataFrame, since: str | None, **more: object) -> PrepareResult:
    """A run of its own of this log, prepared in the year after its events."""
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
    log.write_parquet(path)
    config = more.pop("config", CONFIG)
    run = Run.create(tmp_path / str(more.pop("runs", "runs")))
    clock = START_MS / 1000 + 365 * 86_400
    return prepare(run, path, None, None, config, since=since, clock=lambda: clock, **more)  # type: ignore[arg-type]


def outcome(result: PrepareResult) -> tuple[object, ...]:
    """All that later stages read, equal if every row is; sums are rounded, since the order of adding moves them."""
    events, items = (pl.read_parquet(result.directory / f"{name}.parquet") for name in ("events", "items"))
    tables = [events, items.with_columns(pl.col("weight").round(9))]
    hashes = [(len(table), table.hash_rows().to_list()) for table in tables]
    return (*hashes, result.preprocessing, (result.directory / "split.json").read_bytes())


def total(account: Account) -> int:
    return account.rows_in - sum(step.rows_dropped for step in account.steps)


def step_of(result: PrepareResult, name: str) -> int:
    return next(step.rows_dropped for step in result.account.steps if step.name == name)


def late_and_overlapping(log: pl.DataFrame) -> list[pl.DataFrame]:
    """Each export begins ten rows before the day, and a tenth of the first night's events comes with the last."""
    number = pl.int_range(pl.len())
    is_single = ~pl.struct(pl.all()).is_duplicated()  # equal events of two nights are the same event
    is_late = (
        (night_of() == 0) & (number % 10 == 3) & pl.col("timestamp").is_between(START_MS, START_MS + DAY_MS) & is_single
    )
    nights = []
    for night in range(NIGHTS):
        is_own = (night_of() == night) & ~is_late
        again = log.filter((night_of() == night - 1) & ~is_late).tail(10) if night else log.clear()
        late = log.filter(is_late) if night == NIGHTS - 1 else log.clear()
        nights.append(pl.concat([again, log.filter(is_own), late]))
    return nights


def exports(log: pl.DataFrame) -> dict[str, list[pl.DataFrame]]:
    days = [log.filter(night_of() == night) for night in range(NIGHTS)]
    growing = [log.filter(night_of() <= night) for night in range(NIGHTS)]
    return {"a day each": days, "all so far": growing, "late and overlapping": late_and_overlapping(log)}


@pytest.mark.parametrize("kind", exports(whole_log()))
def test_the_last_night_is_the_whole_log(tmp_path: Path, kind: str) -> None:
    log = whole_log()
    nights = exports(log)[kind]
    results = [prepared(tmp_path, night, "last" if number else "start") for number, night in enumerate(nights)]
    at_once = prepared(tmp_path, log, None, runs="whole")
    assert outcome(results[-1]) == outcome(at_once)
    assert outcome(results[-2]) != outcome(at_once)
    dropped = {step.name for step in results[-1].account.steps if step.rows_dropped or step.rows_changed}
    assert dropped >= {"impossible timestamp", "missing item_id", "missing value", "outliers", "users with few events"}
    for result in results:
        assert total(result.account) == result.account.rows_out
    kept = len(pl.read_parquet(results[-2].directory / RAW_EVENTS))
    assert results[-1].account.rows_in == kept + len(nights[-1])
    assert not (at_once.directory / RAW_EVENTS).exists()


def test_kept_events_come_first_and_a_second_equal_event_is_a_second_one(tmp_path: Path) -> None:
    config = Config(clean=Clean(drop_duplicates=False), visits=VisitSettings(ordered=True))
    names = ["user_id", "item_id", "timestamp"]
    first = pl.DataFrame([("a", "z", START_MS), *[("b", item, START_MS) for item in "xy"]], schema=names, orient="row")
    second = pl.DataFrame([("a", "y", START_MS), *[("a", "z", START_MS)] * 2], schema=names, orient="row")
    prepared(tmp_path, first, "start", config=config)
    result = prepared(tmp_path, second, "last", config=config)
    events = pl.read_parquet(result.directory / "events.parquet")
    assert events.filter(user_id="a")["item_id"].to_list() == ["z", "y", "z"]
    assert step_of(result, "read before") == 1


@pytest.mark.parametrize("since", ["last", "2023-11-01"])
def test_rows_that_steps_name_are_those_of_the_night(tmp_path: Path, since: str) -> None:
    names = ["user_id", "item_id", "timestamp"]
    odd = [("a", None, START_MS + 1), (None, "x", START_MS + 2)]  # of each night: rows 1 and 2
    first = [*odd, ("a", "z", START_MS), *[("b", item, START_MS) for item in "xy"], ("c", "x", -5)]
    early = ("a", "y", START_MS - 30 * DAY_MS)
    second = [*[(user, item, time + 9 if time else time) for user, item, time in odd], early, ("b", "q", START_MS + 3)]
    second += [("a", "z", START_MS), (None, "y", START_MS + 4), ("b", "q", START_MS + 3), ("b", "z", START_MS + 5)]
    prepared(tmp_path, pl.DataFrame(first, names, orient="row"), "start", config=Config())
    result = prepared(tmp_path, pl.DataFrame(second, names, orient="row"), since, config=Config())
    steps = {step.name: (step.rows_dropped, step.first_rows) for step in result.account.steps if step.rows_dropped}
    by_times = since != "last"
    assert steps["before --since" if by_times else "read before"] == ((1, (3,)) if by_times else (1, (5,)))
    assert steps["missing user_id"] == (2 if by_times else 3, (2, 6))
    assert steps["missing item_id"] == (1 if by_times else 2, (1,))
    assert steps["duplicates"] == (1, (7,))
    assert steps["impossible timestamp"] == (1, ()), "only the earlier run has such an event"


def test_late_events_are_named_and_counted(tmp_path: Path) -> None:
    *earlier, last = late_and_overlapping(whole_log())
    for number, night in enumerate(earlier):
        prepared(tmp_path, night, "last" if number else "start")
    result = prepared(tmp_path, last, "last")
    newest = pl.concat(earlier).select(pl.col("timestamp").filter(pl.col("timestamp") < 2e12).max()).item()
    late = last.filter(night_of() == 0)
    assert len(late) > 9
    moment = datetime.fromtimestamp(newest // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert f"{len(late):,} late events, from before {moment} and not in 0003-run, are kept" in result.account.notes
    assert step_of(result, "read before") == 10


def test_from_a_time_on_the_log_replaces_what_was_kept(tmp_path: Path) -> None:
    log = whole_log()
    prepared(tmp_path, log.with_columns(pl.col("item_id") + " wrong").filter(night_of() > 1), "start")
    mended = prepared(tmp_path, log.filter(night_of() <= 1), "last")
    since = datetime.fromtimestamp((START_MS + 2 * DAY_MS) / 1000, UTC).isoformat()
    late = log.filter(night_of() == 1).head(5).with_columns(pl.lit("late").alias("item_id"))
    second = pl.concat([late, log.filter(night_of() == 1).head(7), log.filter(night_of() > 1)])
    result = prepared(tmp_path, second, since)
    assert outcome(result) == outcome(prepared(tmp_path, log, None, runs="whole"))
    assert outcome(mended) != outcome(result)
    assert step_of(result, "replaced") == len(log.filter(night_of() > 1)) + 1  # the one in the far future as well
    assert step_of(result, "before --since") == 12
    assert any(note.startswith("5 late events, from before ") and "left out" in note for note in result.account.notes)
    assert total(result.account) == result.account.rows_out


def test_the_newest_earlier_run_that_keeps_events_is_taken(tmp_path: Path) -> None:
    days = exports(whole_log())["a day each"]
    first = prepared(tmp_path, days[0], "start")
    prepared(tmp_path, days[1], None)  # keeps nothing
    second = prepared(tmp_path, days[1], "last")
    run, runs = Run(second.directory.parent), tmp_path / "runs"
    assert run.record()["data"]["earlier"]["run"] == first.directory.parent.name == "0001-run"
    twin = Run.open(runs, "0001-run").derive("twin")
    failed = Run.create(runs)
    with pytest.raises(ConfigError):
        prepare(failed, Path("none"), None, None, CONFIG, since="never")
    newest = Run.create(runs)
    assert [other.path.name for other in earlier_runs(newest)] == ["0003-run", "0002-run", "0001-run"]
    assert [other.path.name for other in earlier_runs(run)] == ["0002-run", "0001-run"]
    assert twin not in earlier_runs(newest)
    third = prepared(tmp_path, days[2], "last")
    assert [other.path.name for other in earlier_runs(run)] == ["0002-run", "0001-run"]
    again = prepare(Run(third.directory.parent), tmp_path / "0.parquet", None, None, CONFIG)
    assert not (again.directory / RAW_EVENTS).exists()  # it was not asked for


def test_runs_of_the_same_events_have_one_identity(tmp_path: Path) -> None:
    days = exports(whole_log())["a day each"]

    def identity(day: int, since: str | None, runs: str = "runs") -> tuple[object, ...]:
        return Run(prepared(tmp_path, days[day], since, runs=runs).directory.parent).log_identity()

    assert identity(0, "start") == identity(0, None) != identity(1, None)
    assert identity(0, "start", "elsewhere") == identity(0, None)
    after_the_first = identity(1, "last")
    assert after_the_first == identity(1, "last", "elsewhere") != identity(1, None)
    assert identity(1, "last") != after_the_first  # it comes after another run


@pytest.mark.parametrize(
    ("first", "since", "second", "reason"),
    [
        (None, "last", {}, "No earlier run under .* keeps its events; prepare the whole log once with --since start"),
        ("start", "soon", {}, "--since must be `start`, `last` or a time such as 2026-11-01"),
        ("start", "2099-01-01", {}, "None of the log's .* is from 2099-01-01T00:00:00Z on; lower --since"),
        ("start", "last", {"columns": Columns(value="value")}, r"\[columns\] has changed since .*0001-run read its"),
        ("start", "last", {"timeless": True}, "--since needs a log with times"),
        (None, "start", {"timeless": True}, "--since needs a log with times"),
    ],
)
def test_nights_that_do_not_go_together_are_refused(
    tmp_path: Path, first: str | None, since: str, second: dict[str, object], reason: str
) -> None:
    log = whole_log()
    prepared(tmp_path, log, first)
    config = CONFIG.model_copy(update=second)
    with pytest.raises((ConfigError, LogError), match=reason):
        prepared(tmp_path, log.drop("timestamp") if second.get("timeless") else log, since, config=config)


def test_what_was_erased_or_expired_is_not_kept(tmp_path: Path) -> None:
    log, path = whole_log(), tmp_path / "erasures.json"
    marks = ErasureMarks(new_erasure_key(), {})
    marks.mark("u00007", START_MS // 1000 + 10 * 86_400)
    marks.write(path)
    retention = CONFIG.model_copy(update={"privacy": PrivacySettings(retention_days=364)})
    result = prepared(tmp_path, log, "start", erasures=path, config=retention)
    raw = pl.read_parquet(result.directory / RAW_EVENTS)
    assert "u00007" not in raw["user_id"]
    kept = log.filter((pl.col("timestamp") >= START_MS + DAY_MS) | pl.col("timestamp").is_null())
    assert len(raw) == len(kept.filter(pl.col("user_id") != "u00007")) < len(kept) < len(log)
    with pytest.raises(ConfigError, match="0001-run left out erased users; give the file with --erasures again"):
        prepared(tmp_path, log, "last", config=retention)
    again = prepared(tmp_path, log, "last", erasures=path, config=retention)
    assert outcome(again) == outcome(result)
