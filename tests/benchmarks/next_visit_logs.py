"""The logs of `bench_next_visit`, each split before every user's last visit, and figures of what is recommended."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from tests.benchmarks.next_visit_rules import TOP, Histories, Recommended
from training.data import demo
from training.data.reading.time_numbers import read_numbers

DATA = Path(__file__).parents[3] / "shared" / "data"
GAPS = {"demo": 0.0, "online-retail": 0.0, "taobao-sample": 1800.0, "deskdrop": 1800.0}
"""The logs, and the seconds between events of one visit: baskets of one time, or sessions."""
NEGATIVE = {"online-retail": ("return",)}
"""Actions that are no target and that no rule counts."""
MOST_ASKED = 5_000

Figures = Mapping[str, NDArray[np.float64]]
"""HR@10, recall@10 and NDCG@10 of each user, (T,) each."""
NEW, REPEATS = "items new to the user", "repeats"
TASKS = ("all items", NEW, REPEATS)
"""Of the visit's items: all; those that the user never had before; those that the user had."""


class LogFiles(NamedTuple):
    """A log's events, items and users; None where a log has no such table."""

    events: Path
    items: Path | None
    users: Path | None


class SplitLog(NamedTuple):
    """`history`: events before last visits; `targets`: user_id, item_id (a list) and asked_at of the last visits of
    those who are asked for; `users`: how many have a last visit that could be asked for.
    """

    history: pl.DataFrame
    targets: pl.DataFrame
    users: int


@dataclass(frozen=True, eq=False)
class Visitors:
    """Those who are asked for: `targets`, the item rows of each one's last visit, items without a history below 0."""

    histories: Histories
    targets: list[set[int]]
    row_of: Mapping[str, int]

    def targets_of(self, task: str) -> list[set[int]]:
        """The targets of one of `TASKS`; empty for users who have none."""
        if task == TASKS[0]:
            return self.targets
        seen = self.histories.seen
        had = [set(seen.indices[first:end].tolist()) for first, end in zip(seen.indptr, seen.indptr[1:], strict=False)]
        pairs = zip(self.targets, had, strict=True)
        return [target & one for target, one in pairs] if task == REPEATS else [target - one for target, one in pairs]


def files_of(name: str, directory: Path) -> LogFiles:
    """The log's files; the demo log is written into `directory`."""
    if name == "demo":
        files = demo.write_demo(directory / "demo")
        return LogFiles(files.events, files.items, files.users)
    items, users = (
        path if path.is_file() else None for path in (DATA / name / f"{kind}.parquet" for kind in ("items", "users"))
    )
    return LogFiles(DATA / name / "interactions.parquet", items, users)


def check_names(names: list[str]) -> None:
    """End the benchmark where a log is unknown or not on this machine."""
    if unknown := [name for name in names if name not in GAPS]:
        sys.exit(f"There is no log {', '.join(unknown)} here; known: {', '.join(GAPS)}.")
    if missing := [name for name in names if name != "demo" and not (DATA / name).is_dir()]:
        sys.exit(f"{DATA} has no {', '.join(missing)}; choose others with --data (demo needs nothing).")


def split(events: pl.DataFrame, gap_seconds: float, negative: tuple[str, ...], most: int = MOST_ASKED) -> SplitLog:
    """Hold the last visit of each user with two at least out; ask for at most `most` of them, drawn by a fixed seed."""
    events = events.with_columns(pl.col("user_id", "item_id").cast(pl.String), milliseconds=_milliseconds(events))
    events = events.sort("user_id", "milliseconds", maintain_order=True)
    began = (pl.col("milliseconds").diff().over("user_id") > 1000 * gap_seconds).fill_null(True)
    events = events.with_columns(
        visit=began.cast(pl.Int64).cum_sum().over("user_id"),
        counted=~pl.col("action").cast(pl.String).is_in(negative),
    )
    last = pl.col("visit") == pl.col("visit").max().over("user_id")
    held = last & (pl.col("visit").max().over("user_id") > 1)
    targets = events.filter(held & pl.col("counted")).group_by("user_id", maintain_order=True)
    asked = targets.agg(pl.col("item_id").unique(maintain_order=True), pl.col("milliseconds").min().alias("asked_at"))
    users = len(asked)
    if users > most:
        asked = asked[np.sort(np.random.default_rng(0).choice(users, most, replace=False))]
    return SplitLog(events.filter(~held), asked, users)


def _milliseconds(events: pl.DataFrame) -> pl.Series:
    """Times as `segrec-train` reads them: numbers can be seconds."""
    times = events["timestamp"]
    if times.dtype.is_temporal():
        return times.dt.epoch("ms")
    return read_numbers(times.cast(pl.Int64), None, "UTC").milliseconds


def visitors_of(log: SplitLog, items: Path | None = None) -> Visitors:
    """Every user's history by rows, those who are asked for first; `items`: a table that describes items."""
    catalogue = log.history["item_id"].unique(maintain_order=True)
    row_of = {item: row for row, item in enumerate(catalogue.to_list())}
    others = log.history.select(pl.col("user_id").unique(maintain_order=True))
    others = others.join(log.targets, on="user_id", how="anti")
    now = pl.lit(log.history["milliseconds"].max(), pl.Int64).alias("asked_at")
    users = pl.concat([log.targets.select("user_id", "asked_at"), others.select("user_id", now)]).with_row_index("user")
    events = log.history.join(users, on="user_id", how="inner", maintain_order="left").sort("user", maintain_order=True)
    events = events.with_columns(
        item=pl.col("item_id").replace_strict(list(row_of), list(row_of.values()), return_dtype=pl.Int64),
        number=pl.struct("user", "visit").rle_id().cast(pl.Int64),
    )
    had = events.filter(pl.col("user") < len(log.targets)).select("user", "item").unique()
    marks = (np.ones(len(had), bool), (had["user"].to_numpy(), had["item"].to_numpy()))
    seen = sparse.csr_matrix(marks, (len(log.targets), len(catalogue)))
    counted = events.filter("counted")
    user, item, visit, time = (
        counted[name].cast(pl.Int64).to_numpy() for name in ("user", "item", "number", "milliseconds")
    )
    words = None if items is None else words_of(pl.read_parquet(items), row_of)
    asked_at = users["asked_at"].to_numpy()
    histories = Histories(user, item, visit, time, asked_at, len(log.targets), seen, words)
    targets = [
        {row_of.get(item, -1 - place) for place, item in enumerate(visit)} for visit in log.targets["item_id"].to_list()
    ]
    return Visitors(histories, targets, row_of)


def words_of(items: pl.DataFrame, row_of: Mapping[str, int]) -> sparse.csr_matrix:
    """The words of titles and categories, weighed by how rare they are: unit rows (V, words), 0 for unknown items."""
    texts = [""] * len(row_of)
    for item_id, title, category in items.select(pl.col("item_id").cast(pl.String), "title", "category").iter_rows():
        if item_id in row_of:
            categories = category if isinstance(category, list) else [category]
            texts[row_of[item_id]] = " ".join(str(text) for text in (title, *categories) if text)
    return TfidfVectorizer(dtype=np.float32).fit_transform(texts).tocsr()


def score(recommended: NDArray[np.int64], targets: list[set[int]]) -> Figures:
    """HR, recall and NDCG of ten rows a user (T, 10) against the rows of the visit, at least one a user."""
    discounts = 1 / np.log2(np.arange(2, TOP + 2))
    ideal = np.cumsum(discounts)
    pairs = zip(recommended.tolist(), targets, strict=True)
    hit = np.array([[row in target for row in rows] for rows, target in pairs]).reshape(-1, TOP)
    size = np.array([len(target) for target in targets], int)
    return {
        "hr": hit.any(axis=1).astype(float),
        "recall": hit.sum(axis=1) / size,
        "ndcg": (hit * discounts).sum(axis=1) / ideal[np.minimum(size, TOP) - 1],
    }


def figures_of(recommended: Recommended, visitors: Visitors) -> dict[str, Figures]:
    """The figures of each task, of users who have a target of it."""
    found = {}
    for task in TASKS:
        targets = visitors.targets_of(task)
        users = [user for user, target in enumerate(targets) if target]
        items = recommended.new if task == NEW else recommended.any
        found[task] = score(items[users], [targets[user] for user in users])
    return found
