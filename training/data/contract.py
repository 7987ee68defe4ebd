"""The contract of a nightly log: limits within which it must lie, or else the run ends before anything is learned."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl

from training.config import load_settings
from training.config.contract import Contract, MissingShares, Newest, RowLimits
from training.data.nightly import time_text, watermark_ms
from training.data.reading.log_reader import RawLog
from training.errors import ContractError
from training.runs import Run, earlier_runs

_HOUR_MS = 3_600_000
_SHOWN_ACTIONS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a contract, what the log has, and whether that is within the limit; None if it cannot be known."""

    text: str
    seen: str
    holds: bool | None


def read_contract(path: Path) -> Contract:
    """The contract in a TOML file. Raises ConfigError."""
    return load_settings(path, Contract)


def check_contract(
    contract: Contract, log: RawLog, known_items: pl.Series | None, run: Run, now_ms: int
) -> tuple[Line, ...]:
    """Every line of the contract beside what the log of `run` has.

    `known_items` holds the ids of the item table, if there is one. Raises ContractError that names each broken line and
    the figure seen.
    """
    last = next(iter(earlier_runs(run)), None)
    lines = tuple(_lines(contract, log, known_items, last, now_ms))
    broken = [f"{line.text}, but {line.seen}" for line in lines if line.holds is False]
    if broken:
        noun = "line" if len(broken) == 1 else "lines"
        raise ContractError(
            f"The log breaks {len(broken)} {noun} of the contract: {'; '.join(broken)}. Nothing was prepared."
        )
    return lines


def contract_notes(lines: tuple[Line, ...]) -> list[str]:
    """Notes for the account: how many lines hold, and which could not be checked."""
    unknown = [f"contract: {line.text} was not checked: {line.seen}" for line in lines if line.holds is None]
    return [f"contract: {len(lines) - len(unknown)} of {len(lines)} lines hold", *unknown]


def _lines(
    contract: Contract, log: RawLog, known_items: pl.Series | None, last: Run | None, now_ms: int
) -> Iterator[Line]:
    for role in contract.columns:
        found = role in log.columns
        yield Line(f'columns has "{role}"', f"the log has {f'`{log.columns[role]}`' if found else 'none'}", found)
    if contract.actions is not None:
        yield _actions(contract.actions, log)
    yield from _rows(contract.rows, len(log.events), last)
    yield from _missing(contract.missing, log)
    yield from _newest(contract.newest_event, log, now_ms)
    yield from _range("value", contract.value.min, contract.value.max, contract.value.max_share_outside, log)
    first, latest = (_milliseconds(moment) for moment in (contract.timestamp.min, contract.timestamp.max))
    yield from _range("timestamp", first, latest, contract.timestamp.max_share_outside, log)
    yield from _unknown_items(contract.items.max_share_unknown, log, known_items, last)


def _actions(allowed: tuple[str, ...], log: RawLog) -> Line:
    counts = log.events["action"].drop_nulls().cast(pl.String).value_counts(sort=True)
    others = counts.filter(~pl.col("action").is_in(allowed)).rows()
    shown = ", ".join(f"`{name}` ({count:,} rows)" for name, count in others[:_SHOWN_ACTIONS])
    more = f" and {len(others) - _SHOWN_ACTIONS} more" if len(others) > _SHOWN_ACTIONS else ""
    return Line(f"actions = {list(allowed)}", f"the log has {shown}{more}" if others else "no others", not others)


def _rows(limits: RowLimits, rows: int, last: Run | None) -> Iterator[Line]:
    seen = f"the log has {rows:,} rows"
    if limits.min is not None:
        yield Line(f"[rows] min = {limits.min}", seen, rows >= limits.min)
    if limits.max is not None:
        yield Line(f"[rows] max = {limits.max}", seen, rows <= limits.max)
    of_last = {"min_of_last": limits.min_of_last, "max_of_last": limits.max_of_last}
    figures = last.figures("prepare") if last is not None else {}
    before = figures.get("log_rows", figures.get("rows_in"))
    for name, limit in of_last.items():
        if limit is None:
            continue
        text = f"[rows] {name} = {limit:g}"
        if last is None or not before:
            yield Line(text, "there is no earlier run", None)
        else:
            share = rows / before
            holds = share >= limit if name == "min_of_last" else share <= limit
            yield Line(text, f"{seen}, {share:.4g} of the {before:,} of {last.path.name}", holds)


def _missing(limits: MissingShares, log: RawLog) -> Iterator[Line]:
    for role, limit in limits.model_dump(exclude_none=True).items():
        text = f"[missing] {role} = {limit:g}"
        if role not in log.columns:
            yield Line(text, "the log has no such column", False)
            continue
        count, rows = log.events[role].null_count(), len(log.events)
        yield Line(text, f"{count:,} of {rows:,} rows, {count / rows:.4g}, have none", count / rows <= limit)


def _newest(limits: Newest, log: RawLog, now_ms: int) -> Iterator[Line]:
    if limits.max_age_hours is None:
        return
    text = f"[newest_event] max_age_hours = {limits.max_age_hours:g}"
    newest = watermark_ms(log.events, now_ms) if log.has_clock else None
    if newest is None:
        yield Line(text, "the log has no times in the past", False)
        return
    hours = (now_ms - newest) / _HOUR_MS
    seen = f"the newest event, of {time_text(newest)}, is {hours:,.1f} hours old"
    yield Line(text, seen, hours <= limits.max_age_hours)


def _range(role: str, low: float | None, high: float | None, max_share: float, log: RawLog) -> Iterator[Line]:
    if low is None and high is None:
        return
    bounds = {name: bound for name, bound in (("min", low), ("max", high)) if bound is not None}
    shown = (f"{name} = {time_text(int(it)) if role == 'timestamp' else f'{it:g}'}" for name, it in bounds.items())
    text = f"[{role}] {', '.join(shown)}, max_share_outside = {max_share:g}"
    values = log.events[role].drop_nulls()
    if values.is_empty() or (role == "timestamp" and not log.has_clock):
        yield Line(text, f"the log has no {'times' if role == 'timestamp' else 'values'}", False)
        return
    too_low = 0 if low is None else int((values < low).sum())
    too_high = 0 if high is None else int((values > high).sum())
    share = (too_low + too_high) / len(values)
    seen = f"{too_low:,} are lower and {too_high:,} are higher, {share:.4g} of {len(values):,}"
    yield Line(text, seen, share <= max_share)


def _unknown_items(limit: float | None, log: RawLog, known: pl.Series | None, last: Run | None) -> Iterator[Line]:
    if limit is None:
        return
    text, where = f"[items] max_share_unknown = {limit:g}", "the item table"
    if known is None and last is not None:
        known = pl.read_parquet(last.path / "prepare" / "items.parquet", columns=["item_id"])["item_id"]
        where = last.path.name
    if known is None:
        yield Line(text, "there is neither an item table nor an earlier run", None)
        return
    counts = log.events["item_id"].drop_nulls().value_counts()
    is_unknown = ~pl.col("item_id").cast(pl.String).is_in(known.implode())
    unknown, items, rows = counts.select(
        pl.col("count").filter(is_unknown).sum(), is_unknown.sum().alias("items"), pl.col("count").sum().alias("rows")
    ).row(0)
    share = unknown / rows if rows else 0.0
    seen = f"{unknown:,} of {rows:,} events, {share:.4g}, have one of {items:,} items that are not in {where}"
    yield Line(text, seen, share <= limit)


def _milliseconds(moment: datetime | date | None) -> float | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000
