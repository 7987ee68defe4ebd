"""What user embeddings tell of users, and what segments they make, on logs with labels; against stated floors.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_probes --data ml-100k,deskdrop --max-minutes 4

For each log two trainings by two seeds, of `--max-minutes` each, then `segrec-train probe`. Floors are those of a
64-dimensional SVD of idf-weighted counts, as handed down; the SVD of this run stands beside them. Ages of ml-100k are
cut after 25, 35, 45 and 55, as in the floors. Logs are read from `../shared/data`, which is not part of the project;
`demo` is. Ends in one JSON line.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import polars as pl
import torch
from rich.console import Console

from server.core.figures import values_by_name
from tests.benchmarks.common import show
from training.config import Config
from training.data import demo
from training.data.prepare import prepare
from training.evaluation.probe import KS, ProbeResult, probe_run
from training.evaluation.user_vectors import BOTH, BY_HAND, LAST, MEAN, SEGMENT, SVD
from training.fit.train import train
from training.pipeline import with_overrides
from training.runs import Run

DATA = Path("../shared/data")
FLOORS = {
    "ml-1m": {"gender AUROC": 0.844, "age accuracy": 0.520, "halves, k 8": 0.443, "halves, k 32": 0.337},
    "ml-100k": {"gender AUROC": 0.784, "age accuracy": 0.413, "halves, k 8": 0.402, "halves, k 32": 0.191},
    "demo": {"age AUROC": 0.664, "income AUROC": 0.636, "halves, k 8": 0.404, "halves, k 32": 0.162},
    "online-retail": {"country AUROC": 0.900, "halves, k 8": 0.126, "halves, k 32": 0.106},
    "deskdrop": {"country AUROC": 0.845, "halves, k 8": 0.108, "halves, k 32": 0.061},
    "beauty": {"halves, k 8": 0.040, "halves, k 32": 0.039},
}
HITS = {
    "ml-1m": (0.0485, 0.0618),
    "ml-100k": (0.1082, 0.1283),
    "demo": (0.0135, 0.0111),
    "online-retail": (0.0766, 0.0710),
    "deskdrop": (0.0293, 0.0426),
    "beauty": (0.0167, 0.0309),
}
"""Floors of HR@10 of segment popularity, for each of `KS`."""

AGES = (25, 35, 45, 55)
KINDS = (LAST, MEAN, BOTH, SEGMENT, SVD, BY_HAND)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-100k", help=f"Some of {','.join(FLOORS)}.")
    parser.add_argument("--max-minutes", type=float, default=4.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures, rows = {}, []
    for data in options.data.split(","):
        if data not in FLOORS:
            sys.exit(f"There is no log {data} here; known: {', '.join(FLOORS)}.")
        with tempfile.TemporaryDirectory() as name:
            runs = [trained(Path(name), data, options.max_minutes, seed) for seed in (0, 1)]
            result = probe_run(runs[0], runs[1])
        Console(width=140, stderr=True).print(data, result.table())
        found = compared(result)
        floors = FLOORS[data] | {f"HR@10, k {k}": hits for k, hits in zip(KS, HITS[data], strict=True)}
        figures[data] = {"floors": floors, "found": found, "figures": values_by_name(result.figures())}
        rows += [
            (data, name, f"{floor:.4f}", *(f"{found[name][kind]:.4f}" for kind in KINDS))
            for name, floor in floors.items()
        ]
    title = f"User embeddings after {options.max_minutes:g} minutes of training, and floors"
    measured = {"benchmark": "probes", "max_minutes": options.max_minutes, "rows": figures}
    show(title, ("log", "figure", "floor", *KINDS), rows, measured)


def trained(directory: Path, data: str, max_minutes: float, seed: int) -> Run:
    """A run in `directory`, prepared and trained."""
    run = Run.create(directory, data)
    config = with_overrides(demo.CONFIG if data == "demo" else Config(), k=None, max_minutes=max_minutes, seed=seed)
    if data == "demo":
        log = demo.write_demo(directory / ".demo")
        prepare(run, log.events, log.items, log.users, config)
    else:
        source = DATA / data
        if not source.is_dir():
            sys.exit(f"There is no {source}: the logs are not part of the project; `--data demo` needs none of them.")
        items = source / "items.parquet"
        users = labelled(source / "users.parquet", directory / "users.parquet")
        prepare(run, source / "interactions.parquet", items if items.is_file() else None, users, config)
    train(run)
    return run


def labelled(source: Path, target: Path) -> Path | None:
    """The user table, ages in years cut into groups as in the floors; None where there is none."""
    if not source.is_file():
        return None
    table = pl.read_parquet(source)
    years = table["age"].cast(pl.Int64, strict=False) if "age" in table.columns else pl.Series([], dtype=pl.Int64)
    if years.n_unique() > len(AGES) + 5:  # ml-1m has seven groups already
        table = table.with_columns(years.cut(AGES).cast(pl.String).alias("age"))
    table.write_parquet(target)
    return target


def compared(result: ProbeResult) -> dict[str, dict[str, float]]:
    """Figures by the names of the floors, for each kind of vector."""
    found = {}
    for entry in result.labels:
        found[f"{entry.label} AUROC"] = {kind: probe.auroc for kind, probe in entry.by_kind.items()}
        found[f"{entry.label} accuracy"] = {kind: probe.accuracy for kind, probe in entry.by_kind.items()}
    for place, k in enumerate(KS):
        found[f"halves, k {k}"] = {kind: quality[place].halves for kind, quality in result.segments.items()}
        found[f"HR@10, k {k}"] = {kind: quality[place].hr for kind, quality in result.segments.items()}
    return found


if __name__ == "__main__":
    main()
