"""What the feature loss does to next items, to what user embeddings say about users, and to segments.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_objectives --data ml-100k --epochs 8

Two trainings of equal epochs, on one thread, without early stopping. NDCG@10 and HR@10: leave-one-out, all items
ranked, test targets. Probes (AUROC by label) and half-ARI (agreement of segments of two halves of each user's events)
are those of `segrec-train probe`, for the last position, the mean over positions, and what a release makes segments of.
Logs are read from `../shared/data`, which is not part of the project; `demo` is. Ends in one JSON line.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from server.core.figures import LEAVE_ONE_OUT, values_by_name
from tests.benchmarks.common import by_last_event, show
from training.config import Config
from training.data import demo
from training.data.prepare import prepare
from training.evaluation.evaluate import evaluate
from training.evaluation.probe import probe_run
from training.evaluation.user_vectors import LAST, MEAN, SEGMENT
from training.fit.train import train
from training.runs import Run

DATA = Path("../shared/data")
ROWS = {"next_item": 0.0, "next_item + feature_mse": 1.0}
"""Weight of `train.feature_mse` by row."""

K = 8


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--max-minutes", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        run = prepared(Path(name), options.data)
        figures = {}
        for objective, weight in ROWS.items():
            settings = run.config().train.model_copy(
                update={
                    "feature_mse": weight,
                    "epochs": options.epochs,
                    "patience": options.epochs,
                    "max_minutes": options.max_minutes,
                    "seed": options.seed,
                }
            )
            start = time.process_time()
            epochs = train(run, settings=settings).epochs
            figures[objective] = {"epochs": epochs, "CPU s": round(time.process_time() - start)} | measured(run)
            print(objective, figures[objective], file=sys.stderr, flush=True)
    show(
        f"Objectives on {options.data}, {options.epochs} epochs at most, seed {options.seed}",
        ("figure", *ROWS),
        [(name, *(f"{row[name]:.4g}" for row in figures.values())) for name in figures["next_item"]],
        {"benchmark": "objectives", "data": options.data, "seed": options.seed, "rows": figures},
    )


def prepared(directory: Path, data: str) -> Run:
    """A run in `directory` whose log is prepared."""
    run = Run.create(directory, "objectives")
    if data == "demo":
        log = demo.write_demo(directory / ".demo")
        prepare(run, log.events, log.items, log.users, by_last_event(demo.CONFIG))
        return run
    source = DATA / data
    if not source.is_dir():
        sys.exit(f"There is no {source}: the logs are not part of the project; `--data demo` needs none of them.")
    items, users = source / "items.parquet", source / "users.parquet"
    tables = (items if items.is_file() else None, users if users.is_file() else None)
    prepare(run, source / "interactions.parquet", *tables, by_last_event(Config()))
    return run


def measured(run: Run) -> dict[str, float]:
    """Figures of a trained run by name; larger is better."""
    evaluate(run)
    ranking, probes = (values_by_name(found) for found in (run.quality("evaluate"), probe_run(run).figures()))
    figures = {f"{name}@10": ranking[f"{LEAVE_ONE_OUT}/encoder/{name.lower()}@10"] for name in ("NDCG", "HR")}
    for way in (LAST, MEAN, SEGMENT):
        auroc = {name: value for name, value in probes.items() if name.endswith(f"/{way}/auroc")}
        figures |= {f"{name.split('/')[0].removeprefix('probe of ')} {way}": value for name, value in auroc.items()}
        figures[f"half-ARI {way}"] = probes[f"{K} segments/{way}/halves"]
    return figures


if __name__ == "__main__":
    main()
