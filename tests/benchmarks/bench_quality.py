"""Next items by Segrec with its defaults and by RecTools' SASRec, trained in one call on the same split.

    python -m tests.benchmarks.bench_quality --minutes 30
    python -m tests.benchmarks.bench_quality --logs ml-1m,beauty --seeds 0,1,2 --only ours

Leave-one-out: of each user and item the first event counts; of users with five such events the last one is the test
target and the one before it the validation target, which chooses the epoch; all items are ranked, those of the history
left out. Where time stamps tie, the order of the file holds, as in papers. Both have the same minutes and threads, one
after the other, and read the same prepared events. RecTools runs in an environment of its own, made at first use
(`peers/`), does not get the test targets, and lists items by its own `recommend`. Logs are read from
`../shared/data`, which is not part of the project; `demo` is.

What is done is kept under --work and not done again, unless with --again; each log goes into --out when it is done.
Prints a table in Markdown, then one JSON line a log. `ratio` is our NDCG@10 over RecTools', `difference` holds the true
paired difference at 95 %, `reached` says whether we are ahead by 5 % in no more training time. `cpu_seconds` tell how
much of a shared machine a training had.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from server.core.figures import ENCODER, LEAVE_ONE_OUT
from server.core.preprocessing import Preprocessing
from tests.benchmarks.common import by_last_event, machine
from tests.benchmarks.peers.environment import python_of
from training.config import Config
from training.data import demo
from training.data.prepare import prepare
from training.data.sequences import held_out, in_training, read_first_events
from training.evaluation.evaluate import evaluate
from training.evaluation.results import RANKS, TREND
from training.fit.callbacks import METRIC
from training.fit.train import train
from training.metrics import LIST_LENGTH, bootstrap_interval, coverage, ndcg_each, ranking_metrics
from training.runs import CURVES, Run

DATA = Path("../shared/data")
DEMO = "demo"
LOGS = ("ml-1m", "ml-100k", "beauty", "online-retail", "deskdrop", "taobao-sample", DEMO)
GOAL = 1.05
SAME_TIME = 1.02
"""Two trainings that are stopped by the clock end within a step or a validation of each other."""

PEER = Path(__file__).parent / "peers" / "rectools_sasrec.py"
OURS, THEIRS = "ours", "peer"

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")


@dataclass(frozen=True)
class Outcome:
    """What one training gave: `facts` for the record, and the rank of each target (T,) from 0."""

    facts: Mapping[str, Any]
    ranks: NDArray[np.int64]

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file of `write`."""
        with np.load(path) as arrays:
            return cls(json.loads(str(arrays["facts"])), arrays["ranks"])

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        temporary = path.with_name(f".{path.name}")
        np.savez_compressed(temporary, facts=json.dumps(self.facts), ranks=self.ranks)
        temporary.replace(path)


@dataclass(frozen=True)
class Order:
    """One log and seed, and the terms on which both are trained."""

    log: str
    seed: int
    terms: Mapping[str, Any]
    peer_settings: Mapping[str, Any]

    def path(self, work: Path, method: str) -> Path:
        """Where an outcome is kept."""
        return work / f"{self.log}-{self.seed}" / f"{method}.npz"

    def terms_of(self, method: str) -> dict[str, Any]:
        """What an outcome must have been made with to stand for this order."""
        return {**self.terms, "settings": self.peer_settings} if method == THEIRS else dict(self.terms)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", default=",".join(LOGS))
    parser.add_argument("--minutes", type=float, default=30.0, help="Of training, for each of the two.")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", choices=(OURS, THEIRS))
    parser.add_argument("--again", action="store_true", help="Train again what is done already.")
    parser.add_argument("--peer-settings", type=json.loads, default={}, help="JSON of SASRecModel's parameters.")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--out", type=Path, default=Path("runs/quality/results.jsonl"))
    options = parser.parse_args()
    logs = _known(options.logs.split(","))
    os.environ |= dict.fromkeys(_THREADS, str(options.threads))
    torch.set_num_threads(options.threads)
    terms = {"minutes": options.minutes, "threads": options.threads}
    records = []
    for log in logs:
        for seed in map(int, options.seeds.split(",")):
            order = Order(log, seed, terms, options.peer_settings)
            records.append(compared(order, options))
    print(markdown(records))
    for record in records:
        print(json.dumps(record))
    asked = (options.only,) if options.only else (OURS, THEIRS)
    if not all(method in record for record in records for method in asked):
        sys.exit(1)


def compared(order: Order, options: argparse.Namespace) -> dict[str, Any]:
    """The record of one log and seed; trains what is not done."""
    found: dict[str, Outcome] = {}
    trained = False
    for method in (OURS, THEIRS):
        path = order.path(options.work, method)
        wanted = options.only in (None, method)
        if path.is_file() and not (wanted and options.again):
            outcome = Outcome.read(path)
            if outcome.facts["terms"] == order.terms_of(method):
                found[method] = outcome
                continue
        if wanted:
            _say(f"{order.log}, seed {order.seed}: {method}, {options.minutes:g} minutes at most")
            run = prepared(options.work, order)
            try:
                found[method] = ours(run, order) if method == OURS else theirs(run, order)
            except subprocess.CalledProcessError as error:
                _say(
                    f"{Path(error.cmd[0]).name} ended with code {error.returncode}: {order.log} goes without RecTools."
                )
                continue
            found[method].write(path)
            trained = True
    record = record_of(order, found)
    if trained:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    return record


def prepared(work: Path, order: Order) -> Run:
    """The log's run, prepared with the defaults; the demo log has settings of its own."""
    path = work / f"{order.log}-{order.seed}"
    run = Run.open(work, path.name) if (path / "run.json").is_file() else Run.create(work, run_id=path.name)
    if order.log == DEMO:
        files = demo.write_demo(work / ".demo")
        prepare(run, files.events, files.items, files.users, by_last_event(demo.CONFIG))
    else:
        source = DATA / order.log
        items, users = (
            path if path.is_file() else None for path in (source / "items.parquet", source / "users.parquet")
        )
        prepare(run, source / "interactions.parquet", items, users, by_last_event(Config()))
    return run


def ours(run: Run, order: Order) -> Outcome:
    """Train and evaluate in a process of its own, which starts with the threads that are allowed."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        facts = pool.submit(_train_ours, run, order).result()
    ranks = pl.read_parquet(run.path / "evaluate" / RANKS).filter(pl.col("protocol") == LEAVE_ONE_OUT)["rank"]
    return Outcome({"terms": order.terms_of(OURS), **facts}, ranks.to_numpy())


def _train_ours(run: Run, order: Order) -> dict[str, Any]:
    torch.set_num_threads(order.terms["threads"])
    settings = run.config().train.model_copy(update={"max_minutes": order.terms["minutes"], "seed": order.seed})
    start, start_cpu = time.monotonic(), time.process_time()
    result = train(run, settings=settings)
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - start_cpu
    curve = json.loads((run.path / "train" / CURVES).read_bytes())
    best = max(range(len(curve)), key=lambda epoch: curve[epoch][METRIC])
    gained = len(curve) - 1 - best < settings.patience
    results = {found.method: found for found in evaluate(run).results if found.protocol == LEAVE_ONE_OUT}
    popularity = results["popularity"].figures
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "epochs": result.epochs,
        "best_seconds": round(curve[best]["seconds"], 1),
        "ended": "no more gain" if not gained else "all epochs" if len(curve) >= settings.epochs else "time up",
        "validation_ndcg@10": result.ndcg,
        **results[ENCODER].figures,
        "popularity": {name: popularity[name] for name in ("hr@10", "ndcg@10")},
        "trend": {name: results[TREND].figures[name] for name in ("hr@10", "ndcg@10")} if TREND in results else None,
    }


def theirs(run: Run, order: Order) -> Outcome:
    """Train RecTools on the same events in its own environment, and rank the targets by its lists."""
    task, result = run.path / "peer-task.npz", run.path / "peer-result.npz"
    targets, item_count = write_task(run, order, task)
    subprocess.run([python_of(), PEER, task, result], check=True, stdout=sys.stderr)
    with np.load(result) as arrays:
        lists, facts = arrays["lists"], json.loads(str(arrays["facts"]))
    hits = lists == targets[:, None]
    ranks = np.where(hits.any(1), hits.argmax(1), item_count).astype(np.int64)
    listed = lists[:, :LIST_LENGTH]
    covered = coverage(torch.from_numpy(listed[listed >= 0]), item_count)
    figures = {**ranking_metrics(ranks), f"coverage@{LIST_LENGTH}": covered}
    return Outcome({"terms": order.terms_of(THEIRS), **facts, **figures}, ranks)


def write_task(run: Run, order: Order, path: Path) -> tuple[NDArray[np.int32], int]:
    """What RecTools gets to read; returns what it does not get, the test targets (T,), and the number of items."""
    prepared_data = run.require("prepare")
    preprocessing = Preprocessing.model_validate_json((prepared_data / "preprocessing.json").read_bytes())
    item_count: int = pl.scan_parquet(prepared_data / "items.parquet").select(pl.len()).collect().item()
    log = read_first_events(prepared_data, preprocessing)
    items = log.features.item_index - 1
    users = np.repeat(np.arange(len(log.users)), log.features.lengths)
    seen, validation, test = in_training(log), held_out(log, 2), held_out(log, 1)
    task = {
        "minutes": order.terms["minutes"],
        "seed": order.seed,
        "max_length": preprocessing.max_length,
        "settings": order.peer_settings,
    }
    np.savez(
        path,
        task=json.dumps(task),
        train_user=users[seen],
        train_item=items[seen],
        validation_user=validation.rows,
        validation_item=items[validation.ends],
    )
    return items[test.ends], item_count


def record_of(order: Order, found: Mapping[str, Outcome]) -> dict[str, Any]:
    """What is kept and printed of one log: both sides, and how they compare where both are there."""
    record: dict[str, Any] = {"benchmark": "quality", "log": order.log, "seed": order.seed, **order.terms}
    record |= {method: outcome.facts for method, outcome in found.items()}
    if len(found) == 2:
        own, peer = found[OURS], found[THEIRS]
        gains, others = ndcg_each(own.ranks, 10), ndcg_each(peer.ranks, 10)
        ratio = gains.mean() / others.mean() if others.any() else float("inf")
        low, high = bootstrap_interval(gains - others, seed=0)
        record |= {"users": len(gains), "ratio": round(float(ratio), 3), "difference": [round(low, 4), round(high, 4)]}
        record["reached"] = bool(ratio >= GOAL and own.facts["seconds"] <= SAME_TIME * peer.facts["seconds"])
    return {**record, **machine()}


COLUMNS = (
    "log",
    "popularity NDCG@10",
    "RecTools HR@10",
    "NDCG@10",
    "coverage@10",
    "seconds (to the best epoch)",
    "epochs",
    "Segrec HR@10",
    "NDCG@10",
    "coverage@10",
    "seconds (to the best epoch)",
    "epochs",
    "with trend, NDCG@10",
    "ratio",
    "difference, 95 %",
    "reached",
)


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as a table."""
    lines = [COLUMNS, ("---",) + ("---:",) * (len(COLUMNS) - 1), *map(_row, records)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    own, peer = record.get(OURS), record.get(THEIRS)
    compared_cells = ("–",) * 3
    if "ratio" in record:
        low, high = record["difference"]
        reached = "yes" if record["reached"] else "**no**"
        compared_cells = (f"**{record['ratio']:.2f}**", f"{low:+.4f} – {high:+.4f}", reached)
    popularity = _short(own["popularity"]["ndcg@10"]) if own else "–"
    trend = _short(own["trend"]["ndcg@10"]) if own and own.get("trend") else "–"
    return (f"{record['log']}, seed {record['seed']}", popularity, *_side(peer), *_side(own), trend, *compared_cells)


def _side(facts: Mapping[str, Any] | None) -> tuple[str, ...]:
    if facts is None:
        return ("–",) * 5
    figures = [_short(facts[name]) for name in ("hr@10", "ndcg@10", "coverage@10")]
    seconds = f"{facts['seconds']:,.0f} ({facts['best_seconds']:,.0f})"
    return (*figures, seconds, f"{facts['epochs']}, {facts['ended']}")


def _short(share: float) -> str:
    return f"{share:.4f}".removeprefix("0")


def _known(logs: list[str]) -> list[str]:
    """The logs asked for, all of which must be there; ends the program with code 2 where one is not."""
    for log in logs:
        if log not in LOGS:
            _say(f"There is no log `{log}`; there are {', '.join(LOGS)}.")
            sys.exit(2)
        if log != DEMO and not (DATA / log).is_dir():
            _say(f"There is no {DATA / log}: the logs are not part of the project; `--logs {DEMO}` needs none of them.")
            sys.exit(2)
    return logs


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
