"""Log preparation against the same steps in pandas, on one synthetic log as CSV and as Parquet.

    python -m tests.benchmarks.bench_prepare --events 3000000

Both read, parse times, trim and check ids, sort, drop duplicates, drop users and items with fewer than five events to a
fixed point, learn the value's scale on the training part, measure repeats, count the catalogue, and write Parquet. Each
runs in a process of its own, by turns, and the best of `--repeats` counts; `prepare` also takes the file's sha256,
pandas does not. Beside them, as a floor: Polars scans the same columns, sorts them and writes Parquet, and does nothing
else. Ends in one JSON line; `ratio` is how many times the events per second of pandas.
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from rich.console import Console
from rich.table import Table

from training.config import Clean, Config
from training.data.prepare import prepare
from training.runs import Run

LEAST = 5
GOAL = 10.0


def write_log(directory: Path, events: int, seed: int = 0) -> dict[str, Path]:
    """A shop's log: popular items by a power law, 50 events a user on average, one row in a hundred logged twice."""
    rng = np.random.default_rng(seed)
    users, items = max(1, events // 50), max(10, events // 75)
    log = pl.DataFrame(
        {
            "user_id": rng.integers(0, users, events),
            "item_id": rng.zipf(1.3, events) % items,
            "action": rng.choice(["view", "cart", "purchase"], events, p=[0.8, 0.1, 0.1]),
            "value": np.round(rng.lognormal(2, 1, events), 2),
            "timestamp": (1_600_000_000 + np.sort(rng.integers(0, 30_000_000, events))) * 1000,
        }
    ).with_columns(
        pl.format("customer-{}", "user_id").alias("user_id"),
        pl.format("sku-{}", "item_id").alias("item_id"),
        pl.col("timestamp").cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%d %H:%M:%S"),
    )
    twice = log.gather(np.sort(np.concatenate([np.arange(events - events // 100), np.arange(0, events, 100)])[:events]))
    paths = {kind: directory / f"log.{kind}" for kind in ("csv", "parquet")}
    twice.write_csv(paths["csv"])
    twice.write_parquet(paths["parquet"])
    return paths


def with_segrec(source: Path, directory: Path) -> tuple[int, int]:
    """Rows and items kept by the `prepare` stage."""
    config = Config(clean=Clean(min_events_per_user=LEAST, min_events_per_item=LEAST))
    result = prepare(Run.create(directory), source, None, None, config)
    return result.account.rows_out, result.items


def with_pandas(source: Path, directory: Path) -> tuple[int, int]:
    """Rows and items kept by the same steps in pandas."""
    ids = ["user_id", "item_id", "action"]
    read = pd.read_parquet if source.suffix == ".parquet" else pd.read_csv
    log: pd.DataFrame = read(source)
    times = pd.to_datetime(log["timestamp"], format="%Y-%m-%d %H:%M:%S", utc=True)
    log["timestamp"] = times.dt.as_unit("ms").astype("int64")
    for name in ids:
        log[name] = log[name].astype("string").str.strip()
    log = log.dropna(subset=[*ids, "timestamp"])
    for name in ids:
        different = pd.Series(log[name].unique())
        bad = (different.map(lambda text: len(text.encode())) > 256) | different.str.contains(r"[\x00-\x1f\x7f]")
        if bad.any():
            log = log[~log[name].isin(different[bad])]
    log = log[(log["timestamp"] >= 0) & (log["timestamp"] <= time.time() * 1000 + 86_400_000)]
    log.loc[np.isinf(log["value"]), "value"] = np.nan
    log = log.sort_values(["user_id", "timestamp"], kind="stable").drop_duplicates()
    before = -1
    while before != len(log):
        before = len(log)
        for name in ids[:2]:
            log = log[log.groupby(name)["action"].transform("size") >= LEAST]
    part = log.loc[log.groupby("user_id").cumcount(ascending=False) >= 2, "value"]
    scaled = np.sign(part) * np.log1p(part.abs())
    scale = {"center": scaled.mean(), "scale": scaled.std(ddof=0)}
    again = log.duplicated(ids)
    same_visit = (log[ids[:2]] == log[ids[:2]].shift(1)).all(axis=1)
    scale["repeats"] = (again & ~same_visit).mean()
    scale["length"] = log.groupby("user_id").size().quantile(0.75)
    weight = log["action"].map({"view": 0.3, "cart": 0.6, "purchase": 1.0}).astype("float64")
    catalogue = (
        log.assign(weight=weight).groupby("item_id").agg(event_count=("weight", "size"), weight=("weight", "sum"))
    )
    catalogue = catalogue.reset_index().sort_values(["event_count", "item_id"], ascending=[False, True])
    log.to_parquet(directory / "events.parquet", index=False)
    catalogue.to_parquet(directory / "items.parquet", index=False)
    (directory / "preprocessing.json").write_text(json.dumps(scale))
    return len(log), len(catalogue)


def with_polars_alone(source: Path, directory: Path) -> tuple[int, int]:
    """Rows written by a bare scan, sort and write of the five columns; there is no second figure."""
    frame = pl.scan_parquet(source) if source.suffix == ".parquet" else pl.scan_csv(source)
    frame.sort("user_id", "timestamp", maintain_order=True).sink_parquet(
        directory / "events.parquet", compression="lz4"
    )
    return int(pl.scan_parquet(directory / "events.parquet").select(pl.len()).collect().item()), 0


def timed(work: Callable[[Path, Path], tuple[int, int]], source: Path, repeats: int) -> tuple[float, tuple[int, int]]:
    """Seconds of the best of `repeats` and what was kept, in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, kept = pool.apply(_best, (work, source, repeats))
    return seconds, kept


def _best(work: Callable[[Path, Path], tuple[int, int]], source: Path, repeats: int) -> tuple[float, tuple[int, int]]:
    best, kept = float("inf"), (0, 0)
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as directory:
            start = time.perf_counter()
            kept = work(source, Path(directory))
            best = min(best, time.perf_counter() - start)
    return best, kept


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "polars": pl.__version__,
        "pandas": pd.__version__,
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=3_000_000)
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    facts = machine()
    table = Table(title=f"Preparing {asked.events:,} events")
    for heading in ("input", "segrec events/s", "bare Polars events/s", "pandas events/s", "ratio"):
        table.add_column(heading, justify="right")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for kind, source in write_log(Path(directory), asked.events).items():
            ours, kept = timed(with_segrec, source, asked.repeats)
            bare, _ = timed(with_polars_alone, source, asked.repeats)
            theirs, kept_by_pandas = timed(with_pandas, source, asked.repeats)
            if kept != kept_by_pandas:
                raise SystemExit(f"The two differ: segrec kept {kept} rows and items, pandas {kept_by_pandas}.")
            seconds = {"segrec": ours, "polars": bare, "pandas": theirs}
            rates = {name: round(asked.events / taken) for name, taken in seconds.items()}
            figures[kind] = rates | {"ratio": round(theirs / ours, 2)}
            table.add_row(kind, *(f"{rate:,}" for rate in rates.values()), f"{theirs / ours:.1f}")
    console = Console()
    console.print(table)
    console.print(", ".join(f"{name} {fact}" for name, fact in facts.items()))
    print(
        json.dumps({"benchmark": "prepare", "events": asked.events, "goal": GOAL, "figures": figures, "machine": facts})
    )


if __name__ == "__main__":
    main()
