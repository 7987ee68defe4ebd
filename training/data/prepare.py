"""First stage: reads and cleans a log, and writes the tables that later stages and the server's history store read."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from server.core.preprocessing import Action, Preprocessing, ValueNormaliser
from server.core.repository.layout import EVENTS_MARK, PREPROCESSING, WITH_CLOCK, WITHOUT_CLOCK
from training.config import Config
from training.data.account import Account
from training.data.cleaning import clean
from training.data.columns import ActionWeights, action_weights
from training.data.contract import check_contract, contract_notes, read_contract
from training.data.item_text import add_text
from training.data.learnable import check_learnable
from training.data.left_out import leave_out, read_erasures
from training.data.nightly import RAW_EVENTS, Continued, account_of_reading, check_since, continued, write_raw_events
from training.data.reading.item_table import IdTable, read_items, read_users
from training.data.reading.log_reader import RawLog, read_raw_log
from training.data.reading.sources import Log, Source, fingerprint_of
from training.data.split import LEAVE_ONE_OUT, Split, choose_split, write_split
from training.data.ties import sort_ties_of_log
from training.data.visits import find_visits
from training.errors import ConfigError, LogError
from training.runs import Progress, Run, fingerprint, no_progress, write_atomically

REPEATS_MAX = 0.1
"""Limit of `repeat_share`: at or above it, recommendations may contain items that the user has seen."""

VISIT_REPEATS_MAX = 0.02
"""The limit of `FoundVisits.repeats` for a log with visits: its ranking weighs repeats against new items."""

_LENGTHS = (16, 32, 50, 100, 200)
_STEPS = ("reading", "cleaning", "item table", "writing")
_TEXT_STORE = ".text"
"""Directory beside the runs that keeps text vectors for later runs."""


@dataclass(frozen=True)
class PrepareResult:
    """Summary of the output of `prepare` in `directory`."""

    directory: Path
    preprocessing: Preprocessing
    account: Account
    users: int
    items: int


def prepare(
    run: Run,
    events: Log,
    items: Path | None,
    users: Path | None,
    config: Config,
    progress: Progress = no_progress,
    *,
    erasures: Path | None = None,
    since: str | None = None,
    contract: Path | None = None,
    clock: Callable[[], float] = time.time,
) -> PrepareResult:
    """Write `events.parquet`, `items.parquet`, `users.parquet` (if given), `preprocessing.json` and `account.json`.

    With `[text]` also the files of `item_text.add_text`. Events of users before their erasure, according to the file
    `erasures`, are left out. With `since` the events of an earlier run go before those of the log (`continued`), and
    `raw_events.parquet` keeps all of them for later nights. `clock` gives seconds since 1970. Raises LogError;
    ContractError for a log beyond the limits in the file `contract`; and ConfigError, also when the run was prepared
    with erasures and none are given.
    """
    limits = read_contract(contract) if contract else None
    if since is not None:
        check_since(since)
    if erasures is None and "erasures" in run.record().get("data", {}):
        raise ConfigError(f"{run.path} left out erased users; give it the file with --erasures again.")
    if config.visits.ordered and isinstance(events, Source) and not events.has_row_order:
        raise ConfigError(f"[visits] ordered = true needs an order of the rows, and {events} has none; leave it out.")
    erased = read_erasures(erasures) if erasures else None
    with run.stage("prepare") as stage, _scratch(stage.directory) as scratch:
        progress(_STEPS[0], 0, len(_STEPS))
        now_ms = int(clock() * 1000)
        raw_log = read_raw_log(events, config.columns, scratch)
        item_table = read_items(items, config.items, scratch, config.columns.words) if items else None
        table = item_table.rows if item_table else None
        log_rows = raw_log.row_count
        known_items = table["item_id"] if table is not None else None
        lines = check_contract(limits, raw_log, known_items, run, now_ms) if limits else ()
        night = Continued(raw_log)
        if since is not None:
            night = continued(raw_log, since, run, config, erasures is not None, now_ms)
        rows_in, read_steps = account_of_reading(raw_log, night)
        raw_log, left_out = leave_out(night.log, erased, config.privacy.retention_days, now_ms)
        log, weights, notes = named_actions(raw_log, config)
        notes = [*(contract_notes(lines) if limits else ()), *night.notes, *raw_log.notes, *notes]
        if not log.has_clock:
            kind = "rows" if log.ordered_by_row else "times"
            notes.append(f"no clock: {kind} give the order of events, not their date and time")
        progress(_STEPS[1], 1, len(_STEPS))
        split = choose_split(config.split, log.events["timestamp"], log.has_clock, now_ms)
        if split.by_time:
            notes.append(split.describe())
        cleaned = clean(log, config.clean, now_ms, config.train.seed, split)
        found = find_visits(cleaned.events, log.has_clock, config.visits)
        if not config.visits.ordered:
            cleaned = replace(cleaned, events=sort_ties_of_log(cleaned.events))
        notes.append(found.describe(chosen=config.visits.gap is None))
        if warning := found.warning():
            notes.append(warning)
        if config.split.method == "auto" and found.has_visits:
            split = Split(by_visit=True)
        progress(_STEPS[2], 2, len(_STEPS))
        training_events = split.training_part(cleaned.events.lazy()).collect() if split.by_time else cleaned.events
        if training_events.is_empty():
            raise LogError(f"Cleaning left no events to train on ({split.describe()}).")
        check_learnable(training_events, weights.by_final_name())
        catalogue = _catalogue(cleaned.events, training_events, weights)
        log_ids = log.events["item_id"].unique().drop_nulls().cast(pl.String)
        catalogue, title_notes = _with_titles(catalogue, item_table, log_ids)
        store = run.path.parent / _TEXT_STORE
        catalogue, text_notes = add_text(
            catalogue, table, log_ids, config.text, store, stage.directory, progress, config.columns.words
        )
        user_table = read_users(users, config.users, scratch, config.columns.words) if users else None
        user_notes = _user_notes(user_table, log.events["user_id"]) if user_table else []
        progress(_STEPS[3], 3, len(_STEPS))
        repeats = found.repeats if split.by_visit else repeat_share(training_events)
        preprocessing = learn_preprocessing(cleaned.events, weights, log.has_clock, repeats, config, split)
        preprocessing = preprocessing.model_copy(update={"visits": found.visits, "value_cleaning": cleaned.values})
        rows_out = len(cleaned.events)
        notes += [*title_notes, *text_notes, *user_notes]
        steps = (*read_steps, *left_out, *cleaned.steps)
        account = Account(rows_in=rows_in, rows_out=rows_out, steps=steps, notes=tuple(notes), files=raw_log.parts)
        tables = tuple(table.account for table in (item_table, user_table) if table)
        account = account.model_copy(update={"tables": tables})
        labels = user_table.rows if user_table else None
        _write_tables(stage.directory, cleaned.events, log.has_clock, catalogue, labels)
        write_raw_events(raw_log, stage.directory, since)
        write_split(stage.directory, split)
        write_atomically(stage.directory / PREPROCESSING, preprocessing.model_dump_json(indent=2) + "\n")
        write_atomically(stage.directory / "account.json", account.model_dump_json(indent=2) + "\n")
        files: dict[str, Log | None] = {"events": events, "items": items, "users": users}
        files |= {"vectors": config.text.vectors, "erasures": erasures, "contract": contract}
        fingerprints = {name: fingerprint_of(path) for name, path in files.items() if path}
        asked: dict[str, Any] = {"since": since} if since is not None else {}
        if night.earlier:
            kept = fingerprint(night.earlier.path / "prepare" / RAW_EVENTS)
            asked["earlier"] = kept | {"run": night.earlier.path.name}
        run.describe(config, fingerprints | asked | {"columns": log.columns})
        user_count = cleaned.events["user_id"].n_unique()
        stage.figures |= {"rows_in": rows_in, "events": rows_out, "users": user_count, "items": len(catalogue)}
        stage.figures |= {"has_clock": log.has_clock, "max_length": preprocessing.max_length}
        stage.figures |= {"exclude_seen": preprocessing.exclude_seen, "repeats": round(repeats, 4)}
        stage.figures |= {"ties": round(found.ties, 4), "visit_repeats": round(found.repeats, 4)}
        stage.figures |= {"visits_a_user": found.visits_a_user, "events_a_visit": round(found.events_a_visit, 2)}
        stage.figures |= {"split": split.describe(), "log_rows": log_rows}
        stage.figures |= {"contract": {line.text: line.seen for line in lines}} if lines else {}
        progress(_STEPS[3], 4, len(_STEPS))
    return PrepareResult(stage.directory, preprocessing, account, user_count, len(catalogue))


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A place for copies in UTF-8 of files in other encodings, which hold users: no failure leaves them behind."""
    scratch = directory / "utf8"
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def learn_preprocessing(
    events: pl.DataFrame,
    weights: ActionWeights,
    has_clock: bool,
    repeats: float,
    config: Config,
    split: Split = LEAVE_ONE_OUT,
) -> Preprocessing:
    """The preprocessing learned from cleaned, sorted events; `repeats` is their `repeat_share`."""
    training_events = split.training_part(events.lazy()).collect() if split.by_time else events
    counts = events.select(pl.col("action").unique()).join(
        training_events.group_by("action").len(), on="action", how="left"
    )
    counts = counts.sort("len", "action", descending=[True, False], nulls_last=True)
    by_name = weights.by_final_name()
    exclude_seen = config.clean.exclude_seen
    return Preprocessing(
        max_length=config.train.max_length or choose_max_length(training_events),
        actions=tuple(
            Action(name=name, weight=by_name[name], raw_names=weights.raw_names(name))
            for name in counts["action"].cast(pl.String)
        ),
        value=learn_normaliser(events, config.clean.normalise, split),
        has_clock=has_clock,
        exclude_seen=repeats < (VISIT_REPEATS_MAX if split.by_visit else REPEATS_MAX)
        if exclude_seen is None
        else exclude_seen,
    )


def learn_normaliser(events: pl.DataFrame, method: str, split: Split = LEAVE_ONE_OUT) -> ValueNormaliser:
    """Scaling of values, learned on the training part of sorted events; no scaling if there are no values."""
    value = pl.col("value")
    if method == "log":
        value = value.sign() * value.abs().log1p()
    centers = {"min_max": value.min(), "robust": value.median()}
    spreads = {
        "min_max": value.max() - value.min(),
        "robust": value.quantile(0.75, "linear") - value.quantile(0.25, "linear"),
    }
    statistics = centers.get(method, value.mean()), spreads.get(method, value.std(ddof=0))
    training_events = split.training_part(events.lazy())
    center, scale = training_events.select(statistics[0].alias("c"), statistics[1].alias("s")).collect().row(0)
    if method == "none" or center is None:
        return ValueNormaliser()
    return ValueNormaliser.model_validate({"method": method, "center": center, "scale": scale or 1.0})


def repeat_share(events: pl.DataFrame) -> float:
    """Share of events with which a user returns to an item by the same action, after another item in between.

    Repeats without another item in between count as one visit: reloading an article is no sign of interest in seeing
    it again. `events` are sorted, with ids as Enums.
    """
    user, item, action = (pl.col(name).to_physical().cast(pl.Int64) for name in ("user_id", "item_id", "action"))
    same_visit = (user == user.shift(1)) & (item == item.shift(1))
    kind = (user * (item.max() + 1) + item) * (action.max() + 1) + action  # one integer is faster to count than three
    visits = events.select(kind.filter(~same_visit.fill_null(False))).to_series()
    return (len(visits) - visits.n_unique()) / len(events)


def choose_max_length(events: pl.DataFrame) -> int:
    """The smallest of `_LENGTHS` that holds the whole history of 75 % of users; the largest if none does."""
    typical = events.group_by("user_id").len()["len"].quantile(0.75) or 1
    return next((length for length in _LENGTHS if length >= typical), _LENGTHS[-1])


def named_actions(log: RawLog, config: Config) -> tuple[RawLog, ActionWeights, list[str]]:
    """The log with final action names, the action weights, and notes on unknown actions. Raises ConfigError."""
    raw = log.events["action"].drop_nulls().unique().cast(pl.String).sort().to_list()
    fill = config.clean.missing.action.fill
    weights = action_weights(dict.fromkeys([*raw, *([str(fill)] if fill is not None else [])]), config.actions)
    by_name: dict[str, float] = {}
    for name, weight in ((weights.name[key], weight) for key, weight in weights.weight.items()):
        if by_name.setdefault(name, weight) != weight:
            raise ConfigError(
                f"The action `{name}` gets two weights, {by_name[name]:g} and {weight:g}; set one weight in [actions]."
            )
    notes = [
        f"action `{name}` is not a common one: its weight is 1; change it in [actions]" for name in weights.unknown
    ]
    notes += [f"[actions] `{name}` does not occur in the log" for name in config.actions if name not in weights.name]
    if any(name != key for key, name in weights.name.items()):
        names = pl.Enum(sorted(by_name))
        renamed = log.events["action"].cast(pl.String).replace(dict(weights.name)).cast(names)
        log = replace(log, events=log.events.with_columns(renamed))
    return log, weights, notes


def _catalogue(events: pl.DataFrame, training_events: pl.DataFrame, weights: ActionWeights) -> pl.DataFrame:
    """item_id, event_count and summed weight of all `events`; most frequent in `training_events` first."""
    by_name = weights.by_final_name()
    counts = events.group_by("item_id", "action").len().with_columns(pl.col("action").cast(pl.String))
    weight = pl.col("action").replace_strict(by_name, return_dtype=pl.Float64) * pl.col("len")
    grouped = counts.group_by("item_id").agg(
        pl.col("len").sum().cast(pl.UInt32).alias("event_count"), weight.sum().alias("weight")
    )
    frequencies = training_events.group_by("item_id").agg(pl.len().alias("known"))
    return (
        grouped.join(frequencies, on="item_id", how="left")
        .with_columns(pl.col("item_id").cast(pl.String))
        .sort("known", "item_id", descending=[True, False], nulls_last=True)
        .drop("known")
    )


def _with_titles(catalogue: pl.DataFrame, table: IdTable | None, log_ids: pl.Series) -> tuple[pl.DataFrame, list[str]]:
    """The catalogue with titles and categories from the item table, and notes; `log_ids` are all items of the log."""
    if table is None:
        empty = (pl.lit(None, pl.String).alias("title"), pl.lit([], pl.List(pl.String)).alias("category"))
        joined, notes = catalogue.with_columns(*empty), []
    else:
        joined = catalogue.join(table.rows, on="item_id", how="left", maintain_order="left").with_columns(
            pl.col("category").fill_null([])
        )
        absent = catalogue.join(table.rows, on="item_id", how="anti", maintain_order="left")["item_id"]
        notes = [f"{len(absent):,} of {len(catalogue):,} items are not in the item table"] if len(absent) else []
        notes += _unmatched("item table", table.rows["item_id"], log_ids)
        notes += table.notes
    more = [name for name in joined.columns if name in ("group", "seller")]
    return joined.select("item_id", "title", "category", "event_count", "weight", *more), notes


def _user_notes(table: IdTable, log_ids: pl.Series) -> list[str]:
    """Notes on the user table; `log_ids` are the user ids of the events."""
    known = log_ids.unique().drop_nulls().cast(pl.String)
    absent = len(known) - int(known.is_in(table.rows["user_id"].implode()).sum())
    notes = [f"{absent:,} of {len(known):,} users are not in the user table"] if absent else []
    return [*notes, *_unmatched("user table", table.rows["user_id"], known), *table.notes]


def _unmatched(name: str, ids: pl.Series, log_ids: pl.Series) -> list[str]:
    """A note on the ids of a table that no event has; if none matches, with an id of each side."""
    unmatched = ids.filter(~ids.is_in(log_ids.implode()))
    if unmatched.is_empty():
        return []
    note = f"{len(unmatched):,} of {len(ids):,} ids of the {name} are in no event of the log"
    if len(unmatched) == len(ids) and len(log_ids):
        note += f": the table has `{ids[0]}`, the log `{log_ids.sort()[0]}`"
    return [note]


def _write_tables(
    directory: Path, events: pl.DataFrame, has_clock: bool, catalogue: pl.DataFrame, labels: pl.DataFrame | None
) -> None:
    texts = pl.col("user_id", "item_id", "action").cast(pl.String)
    mark = {EVENTS_MARK: WITH_CLOCK if has_clock else WITHOUT_CLOCK}
    events.lazy().with_columns(texts).sink_parquet(directory / "events.parquet", compression="lz4", metadata=mark)
    catalogue.write_parquet(directory / "items.parquet")
    (directory / "users.parquet").unlink(missing_ok=True)
    if labels is not None:
        present = events.select(pl.col("user_id").unique().cast(pl.String))
        labels.join(present, on="user_id", how="semi", maintain_order="left").write_parquet(directory / "users.parquet")
