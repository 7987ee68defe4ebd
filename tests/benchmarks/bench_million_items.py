"""A catalogue of a million items, trained within 8 GB.

    python -m tests.benchmarks.bench_million_items --items 1000000 --minutes 3

Writes a planted log (20 events a user; every item belongs to one of a thousand circles that users walk in), and runs
`segrec-train` stage by stage in processes of its own, each with its peak resident memory as the kernel counts it.
`step_ms` is a training step with all that belongs to it, validation and reading left out; the second catalogue, with
the same number of events, shows what the number of items costs. Needs the package psutil and about 4 GB of disk. Ends
in one JSON line.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.benchmarks.common import show
from tests.support.logs import planted_log
from training.fit.checkpoints import CHECKPOINT
from training.runs import Run

LIMIT_MIB = 8 * 1024
SMALL = 60_000
EVENTS_PER_USER = 20
CIRCLE = 1000


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=250_000)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--stages", nargs="+", default=["prepare", "train"])
    options = parser.parse_args()
    rows: list[tuple[object, ...]] = []
    figures: dict[str, object] = {"benchmark": "million_items", "minutes": options.minutes, "users": options.users}
    for items in (options.items, SMALL):
        with tempfile.TemporaryDirectory() as name:
            # Elsewhere: a child's peak begins at what its parent holds when it is started.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                runs = pool.apply(write_log, (Path(name), items, options.users))
            stages = options.stages if items == options.items else ["prepare", "train"]
            peaks = {stage: measured(stage, runs, options.minutes) for stage in stages}
            run = Run.open(runs / "runs", "bench")
            catalogue = run.figures("prepare")["items"]
            step_ms, validation_seconds, steps = training_times(run)
        for stage, (seconds, mib) in peaks.items():
            rows.append((f"{stage}, {catalogue:,} items", seconds, mib, step_ms if stage == "train" else ""))
        figures |= {
            f"{catalogue}_items": {
                "peak_mib": {stage: mib for stage, (_, mib) in peaks.items()},
                "step_ms": round(step_ms, 1),
                "steps": steps,
                "validation_seconds": round(validation_seconds, 1),
            }
        }
    worst = max(int(str(row[2])) for row in rows)
    show("A million items", ("stage", "seconds", "peak MiB", "ms a step"), rows, figures | {"peak_mib": worst})
    if worst > LIMIT_MIB:
        sys.exit(f"The peak of {worst} MiB is above {LIMIT_MIB}.")


def write_log(directory: Path, items: int, users: int) -> Path:
    """Write `events.parquet` and a configuration; returns the directory."""
    log, _ = planted_log(users, items, items // CIRCLE, EVENTS_PER_USER, seed=0)
    log.write_parquet(directory / "events.parquet")
    return directory


def measured(stage: str, directory: Path, minutes: float) -> tuple[float, int]:
    """Seconds and peak MiB of one stage, in a process of its own."""
    more = {
        "prepare": ["--events", str(directory / "events.parquet")],
        "train": ["--max-minutes", str(minutes)],
        "segment": ["--repository", str(directory / "repository")],
    }.get(stage, [])
    command = [
        sys.executable,
        "-m",
        "training.cli.main",
        stage,
        "--runs",
        str(directory / "runs"),
        "--run",
        "bench",
        *more,
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"`{' '.join(command)}` failed.")
    return time.perf_counter() - start, usage.ru_maxrss >> 10


def training_times(run: Run) -> tuple[float, float, int]:
    """Milliseconds a step, seconds of the last validation, and steps."""
    state = torch.load(run.path / "train" / CHECKPOINT, weights_only=True, mmap=True)
    [keeper] = [kept for name, kept in state["callbacks"].items() if "Keeper" in name]
    curves = json.loads((run.path / "train" / "metrics.json").read_bytes())
    validation_seconds, steps = keeper["clock"]["validation_seconds"], int(state["global_step"])
    return 1000 * (curves[-1]["seconds"] - validation_seconds * len(curves)) / steps, validation_seconds, steps


if __name__ == "__main__":
    main()
