"""Where the time of training goes: the model's share of a step, and what is around it.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_training --log ml-1m --steps 300

Trains with the defaults on a log of `../shared/data` and clocks, in CPU time of the process, what a step takes from end
to end, and of that forward and backward pass, clipping, optimiser, and the reading of its batch. The rest is
Lightning's loop, the schedule, progress and the metrics. Ends in one JSON line.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.common import show
from training.config import Config, TrainSettings
from training.data.prepare import prepare
from training.fit.batching import Windows
from training.fit.lightning_module import NextItemModule
from training.fit.optimizer import LazyAdamW
from training.fit.train import train
from training.runs import Run

DATA = Path("../shared/data")
WARM_UP = 20


class Clocked:
    """CPU seconds by part, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = [defaultdict(float)]
        self._last = 0.0

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Clock a method of a class."""
        inner: Callable[..., Any] = getattr(owner, name)

        def clocked(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.steps[-1][part] += time.process_time() - start

        setattr(owner, name, clocked)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Called once a step, as the progress of `train`."""
        if what.startswith("epoch"):
            now = time.process_time()
            self.steps[-1]["step"] = now - self._last
            self._last = now
            self.steps.append(defaultdict(float))


class Enough(Exception):
    """All steps that were asked for are clocked."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", default="ml-1m")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    events = DATA / options.log / "interactions.parquet"
    if not events.is_file():
        sys.exit(f"There is no {events}; this benchmark reads the logs beside the project.")
    clock = Clocked()
    clock.wrap(NextItemModule, "training_step", "forward")
    clock.wrap(torch.Tensor, "backward", "backward")
    clock.wrap(NextItemModule, "configure_gradient_clipping", "clipping")
    clock.wrap(Windows, "__getitem__", "batch")
    clock.wrap(LazyAdamW, "step", "optimiser and all within")

    def progress(what: str, done: int, total: int) -> None:
        clock(what, done, total)
        if len(clock.steps) > options.steps:
            raise Enough

    with tempfile.TemporaryDirectory() as name:
        run = Run.create(Path(name))
        prepare(run, events, None, None, Config())
        with contextlib.suppress(Enough):
            train(run, settings=TrainSettings(device="cpu"), progress=progress)
    median = {
        part: 1000 * float(np.median([step[part] for step in clock.steps[WARM_UP:-1]])) for part in clock.steps[-2]
    }
    inside = median.pop("optimiser and all within")
    around_closure = inside - median["forward"] - median["backward"] - median["clipping"]
    model = median["forward"] + median["backward"] + median["clipping"]
    rows = [(part, cost, cost / median["step"]) for part, cost in median.items()]
    rows.append(("optimiser, and Lightning around it", around_closure, around_closure / median["step"]))
    figures = {"benchmark": "training", "log": options.log, "threads": torch.get_num_threads()}
    figures |= {f"{part}_ms": round(cost, 2) for part, cost in median.items()}
    share = (model + around_closure) / median["step"]
    show(
        f"Training on {options.log}, ms of CPU a step, median: {share:.1%} in model and optimiser",
        ("part", "ms", "share"),
        rows,
        figures | {"model_share": round(share, 3)},
    )


if __name__ == "__main__":
    main()
