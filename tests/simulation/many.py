"""Plays many histories on all cores."""

import gc
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context

from tests.simulation.planted import PLANTED
from tests.simulation.rules import Violation
from tests.simulation.world import run_history


def played(seeds: Sequence[int], planted: str = "") -> Iterator[str]:
    """The rule that each history breaks, as a sentence, in the order of the seeds; empty where it breaks none."""
    pool = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), _begin)
    try:
        yield from pool.map(partial(broken_rule, planted=planted), seeds, chunksize=8)
    finally:
        pool.shutdown(cancel_futures=True)


def broken_rule(seed: int, planted: str = "") -> str:
    """The rule that the history of a seed breaks, as a sentence; empty when it breaks none."""
    with PLANTED[planted][0]() if planted else nullcontext():
        try:
            run_history(seed)
        except Violation as violation:
            return f"seed {seed}: {violation}"
        finally:
            gc.collect()
    return ""


def _begin() -> None:
    """Give way to all other work, and collect garbage after each history only: it would take a tenth of the time."""
    os.nice(19)
    gc.freeze()
    gc.disable()
