"""Whether planted segments come back: log, prepare, train, export, segment; adjusted Rand as noise grows.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_planted --users 1000 --segments 8 --max-minutes 1

Users of a planted segment keep to its items, but for a share of their events, the noise, that goes anywhere. For each
noise a log is generated and goes the whole way with default settings, `k` that of what was planted; `--k auto` is asked
too. Items by segment, ten, are few enough that most users come by all of them. Ends in one JSON line.
"""

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl
import torch
from rich.console import Console
from sklearn.metrics import adjusted_rand_score

from tests.benchmarks.common import show
from tests.support.logs import write_planted
from training.config import Config
from training.data.prepare import prepare
from training.fit.train import train
from training.model.export import export
from training.pipeline import with_overrides
from training.runs import Run
from training.segments.segment import segment
from training.segments.sweep import sweep_run

NOISES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MODERATE = 0.4
"""Up to here segments should come back with an adjusted Rand index of `GOAL`."""

GOAL = 0.9
ITEMS_A_SEGMENT = 10


@dataclass(frozen=True)
class Planted:
    """What came back of one log: adjusted Rand with what was planted, and what `--k auto` chose."""

    noise: float
    rand: float
    chosen: int
    stability: float
    halves: float
    seconds: float


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--events", type=int, default=20, help="Of each user.")
    parser.add_argument("--noise", default=",".join(map(str, NOISES)), help="Shares, separated by commas.")
    parser.add_argument("--max-minutes", type=float, default=1.0, help="Of training, for each log.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for noise in map(float, options.noise.split(",")):
        with tempfile.TemporaryDirectory() as name:
            found.append(one_log(Path(name), noise, options))
        Console(stderr=True).print(found[-1])
    reached = all(one.rand >= GOAL for one in found if one.noise <= MODERATE)
    rows = [
        (f"{one.noise:.1f}", f"{one.rand:.3f}", one.chosen, f"{one.stability:.3f}", f"{one.halves:.3f}", one.seconds)
        for one in found
    ]
    shape = {name: getattr(options, name) for name in ("users", "segments", "events", "max_minutes")}
    title = f"Planted segments: {options.users:,} users, {options.segments} segments; at least {GOAL} to {MODERATE}: "
    columns = ("noise", "adjusted Rand", "k auto", "stability", "halves", "seconds")
    measured = {"benchmark": "planted", "reached": reached, **shape, "rows": [asdict(one) for one in found]}
    show(title + ("yes" if reached else "NO"), columns, rows, measured)


def one_log(directory: Path, noise: float, options: argparse.Namespace) -> Planted:
    """The whole way of one generated log."""
    sizes = {"users": options.users, "segments": options.segments, "events_per_user": options.events}
    paths = write_planted(directory, noise=noise, items=ITEMS_A_SEGMENT * options.segments, **sizes)
    run = Run.create(directory / "runs", "planted")
    config = with_overrides(Config(), k=options.segments, max_minutes=options.max_minutes, seed=None)
    prepare(run, paths[0], paths[1], None, config)
    train(run)
    export(run)
    segment(run, directory / "repository")
    placed = pl.read_parquet(run.require("segment") / "assignments.parquet")
    both = placed.join(pl.read_csv(paths[2]), on="user_id", how="inner")
    figures = run.figures("segment")
    chosen = sweep_run(run).chosen
    return Planted(
        noise=noise,
        rand=float(adjusted_rand_score(both["segment"], both["segment_id"])),
        chosen=chosen,
        stability=figures["stability"],
        halves=figures["halves_agree"],
        seconds=sum(entry["seconds"] for entry in run.record()["stages"].values()),
    )


if __name__ == "__main__":
    main()
