"""The next visit, held out whole: the product as served beside the rules of one line.

    python -m tests.benchmarks.bench_next_visit --data demo,online-retail --seeds 0,1,2

Of each user with two visits at least, the last visit is the test target: all events of one time stamp on demo and
online-retail, a session that 30 minutes without an event end on taobao-sample and deskdrop. The product is trained on
everything before by `segrec-train run` with the README's defaults (demo: with the settings of `--demo`), once a seed,
served by `segrec-serve`, and gives each user ten items through the client, by each strategy. The rules see the same
events; their settings are chosen on the visit before the last. Figures are HR@10, recall@10 and NDCG@10 of the visit's
set of items, items without a negative action. Items that the events before do not have count as missed.

Three tables: all items, repeats allowed; items that are new to the user, where the product is asked with exclude_seen
and rules leave out what the user had; and repeats, the ten items of the first table against the items that the user had
before. The last columns: how far NDCG@10 is from the best rule, or from popularity and item-kNN (95 % bootstrap over
users, paired). Of a log with more than 5,000 users, 5,000 are asked for, drawn by a fixed seed. Logs are read from
`../shared/data`, which is not part of the project; `demo` is. Ends in one JSON line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from segrec import SegrecClient

from tests.benchmarks.common import machine, print_table
from tests.benchmarks.next_visit_logs import (
    GAPS,
    NEGATIVE,
    NEW,
    TASKS,
    Figures,
    LogFiles,
    SplitLog,
    Visitors,
    check_names,
    figures_of,
    files_of,
    split,
    visitors_of,
)
from tests.benchmarks.next_visit_rules import TOP, Recommended, families, recommend
from training.data import demo
from training.metrics import bootstrap_interval

STRATEGIES = ("hybrid", "personal", "segment", "popular")
STRATEGIES_OF_NEW = ("hybrid", "personal")
MEASURES = ("hr", "recall", "ndcg")

Ways = dict[str, dict[str, Figures]]
"""Figures by task, then by what is recommended."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(GAPS), help=f"Some of {','.join(GAPS)}.")
    parser.add_argument("--gap", type=float, help="Seconds between events of one visit; left out: by the log.")
    parser.add_argument("--max-minutes", type=float, help="Of each training; left out: the README's default.")
    parser.add_argument("--seeds", default="0", help="Of training, one release each, such as 0,1,2.")
    parser.add_argument("--rules-only", action="store_true", help="Train and serve nothing.")
    options = parser.parse_args()
    names = options.data.split(",")
    check_names(names)
    rows: dict[str, list[tuple[str, ...]]] = {task: [] for task in TASKS}
    measured = {}
    for name in names:
        ways, facts = measure(name, options)
        print(f"{name}: {json.dumps(facts)}", flush=True)
        tables = {task: compare(task, ways[task]) for task in TASKS}
        measured[name] = {**facts, **tables}
        for task in TASKS:
            rows[task] += [row_of(f"{name}: {way}", figures) for way, figures in tables[task].items()]
    for task in TASKS:
        to = ("to popularity (95 %)", "to item-kNN (95 %)") if task == NEW else ("to the best rule (95 %)",)
        print_table(f"The next visit: {task}", (f"{task}", "users", "HR@10", "recall@10", "NDCG@10", *to), rows[task])
    print(json.dumps({"benchmark": "next_visit", "logs": measured, **machine()}))


def measure(name: str, options: argparse.Namespace) -> tuple[Ways, Mapping[str, object]]:
    """All ways of one log, and how it was split and what was chosen for the rules."""
    gap = GAPS[name] if options.gap is None else options.gap
    negative = NEGATIVE.get(name, ())
    with tempfile.TemporaryDirectory() as temporary:
        files = files_of(name, Path(temporary))
        test = split(pl.read_parquet(files.events), gap, negative)
        visitors = visitors_of(test, files.items)
        ways, chosen = rules_of(visitors, visitors_of(split(test.history, gap, negative), files.items))
        facts = {"gap_seconds": gap, "users": test.users, "users_asked": len(test.targets), "chosen": chosen}
        if not options.rules_only:
            found: dict[int, Ways] = {}
            for seed in map(int, options.seeds.split(",")):
                directory = Path(temporary) / f"seed-{seed}"
                directory.mkdir()
                found[seed] = product(name, test, visitors, files, directory, (seed, options.max_minutes))
            ways = {task: by_seed({seed: one[task] for seed, one in found.items()}) | ways[task] for task in TASKS}
    return ways, facts


def rules_of(test: Visitors, past: Visitors) -> tuple[Ways, Mapping[str, str]]:
    """Every rule on the test visits with the settings that are best on the visits before, and these settings."""
    ways: Ways = {task: {} for task in TASKS}
    chosen = {}
    for name, candidates in families(test.histories).items():
        best = dict.fromkeys(TASKS, next(iter(candidates)))
        if len(candidates) > 1:
            before = {
                setting: figures_of(recommend(rule(past.histories), past.histories), past)
                for setting, rule in candidates.items()
            }
            every = max(candidates, key=lambda one: _ndcg(before[one][TASKS[0]]))
            of_new = every if name.startswith("own") else max(candidates, key=lambda one: _ndcg(before[one][NEW]))
            best = dict.fromkeys(TASKS, every) | {NEW: of_new}
            chosen[name] = " | ".join(dict.fromkeys(best.values()))
        found = {
            setting: figures_of(recommend(candidates[setting](test.histories), test.histories), test)
            for setting in set(best.values())
        }
        for task in TASKS:
            if task != NEW or not name.startswith("own"):  # of new items, those rules have nothing to say
                ways[task][name] = found[best[task]][task]
    return ways, chosen


def _ndcg(figures: Figures) -> float:
    return float(figures["ndcg"].mean()) if len(figures["ndcg"]) else 0.0


def by_seed(found: Mapping[int, dict[str, Figures]]) -> dict[str, Figures]:
    """The figures of each seed by name, and with several seeds the mean of each user's figures."""
    first, *others = found.values()
    if not others:
        return first
    ways: dict[str, Figures] = {}
    for way in first:
        ways |= {f"{way}, seed {seed}": one[way] for seed, one in found.items()}
        mean = {key: np.mean([one[way][key] for one in found.values()], axis=0) for key in MEASURES}
        ways[f"{way}, mean of {len(found)}"] = mean
    return ways


def compare(task: str, ways: Mapping[str, Figures]) -> dict[str, dict[str, object]]:
    """Means of each way, and the paired difference of NDCG@10 to popularity and item-kNN, or to the best rule."""
    rules = [way for way in ways if not way.startswith("Segrec")]
    references = ["popularity", "item-kNN"] if task == NEW else [max(rules, key=lambda way: _ndcg(ways[way]))]
    compared: dict[str, dict[str, object]] = {}
    for way, figures in ways.items():
        differences = {
            other: bootstrap_interval(figures["ndcg"] - ways[other]["ndcg"], seed=0) if way != other else None
            for other in references
            if len(figures["ndcg"])
        }
        means = {key: float(figures[key].mean()) if len(figures[key]) else None for key in MEASURES}
        compared[way] = {"users": len(figures["ndcg"]), **means, "ndcg_difference": differences}
    return compared


def row_of(name: str, figures: Mapping[str, object]) -> tuple[str, ...]:
    """A row of a table, from `compare`."""
    differences = figures["ndcg_difference"]
    assert isinstance(differences, dict)
    intervals = [f"{one[0]:+.4f} to {one[1]:+.4f}" if one else "itself" for one in differences.values()]
    means = ["–" if figures[key] is None else f"{figures[key]:.3f}" for key in MEASURES]
    return (name, f"{figures['users']:,}", *means, *intervals)


def product(
    name: str,
    test: SplitLog,
    visitors: Visitors,
    files: LogFiles,
    directory: Path,
    training: tuple[int, float | None],
) -> Ways:
    """Train with a seed and minutes, publish and serve on the history, and ask for each user through the client."""
    seed, max_minutes = training
    events = directory / "history.parquet"
    test.history.drop("milliseconds", "visit", "counted").write_parquet(events)
    run, repository = directory / "runs" / "next-visit", directory / "repository"
    command = [_script("segrec-train"), "run", "--events", events, "--run", run.name, "--runs", run.parent]
    command += ["--repository", repository, "--seed", seed, "--force", "a benchmark measures it, ahead of rules or not"]
    for flag, value in (("--items", files.items), ("--users", files.users), ("--max-minutes", max_minutes)):
        command += [flag, value] if value is not None else []
    if name == "demo":
        command += ["--config", write_config(directory / "demo.toml")]
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    users = test.targets["user_id"].to_list()
    ways: Ways = {task: {} for task in TASKS}
    with serving(repository, run / "prepare" / "events.parquet", directory) as address, SegrecClient(address) as client:
        for strategy in STRATEGIES:
            items = ask(client, strategy, users, visitors.row_of, exclude_seen=False)
            new = items
            if strategy in STRATEGIES_OF_NEW:
                new = ask(client, strategy, users, visitors.row_of, exclude_seen=True)
            for task, figures in figures_of(Recommended(items, new), visitors).items():
                if task != NEW or strategy in STRATEGIES_OF_NEW:
                    ways[task][f"Segrec, {strategy}"] = figures
    return ways


def write_config(path: Path) -> Path:
    """The settings of `segrec-train run --demo` as a file."""
    sections = demo.CONFIG.model_dump(mode="json", exclude_unset=True)
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: object) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{" + ", ".join(f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"


def ask(
    client: SegrecClient, strategy: str, users: list[str], row_of_item: Mapping[str, int], *, exclude_seen: bool
) -> NDArray[np.int64]:
    """Ten item rows of each user (T, 10); ends the benchmark where an answer is degraded.

    Where there are fewer, the rest is a row that no target has.
    """
    nothing = len(row_of_item)
    rows = []
    for user in users:
        answer = client.recommend(user, top_k=TOP, strategy=strategy, exclude_seen=exclude_seen)
        if answer.info.degraded:
            sys.exit("An answer was degraded, so no figures can be given: try again on a quieter machine.")
        items = [row_of_item.get(item.item_id, nothing) for item in answer.items]
        rows.append(items + [nothing] * (TOP - len(items)))
    return np.array(rows)


@contextmanager
def serving(repository: Path, events: Path, directory: Path) -> Iterator[str]:
    """A server of the release, as its users start it; yields its address."""
    command = [_script("segrec-serve"), "--repository", repository, "--store", f"lmdb:{directory / 'store'}"]
    command += ["--bootstrap-events", events, "--address", "127.0.0.1:0", "--model-address", "127.0.0.1:0"]
    command += ["--metrics-address", "127.0.0.1:0"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = ""
        for line in server.stdout:
            address = line.split(" on ")[1].strip() if line.startswith("segrec on ") else address
            if line.strip() == "serving":
                break
        try:
            if server.poll() is not None or not address:
                sys.exit("segrec-serve ended before it served.")
            yield address
        finally:
            server.terminate()
            server.communicate()


def _script(name: str) -> Path:
    return Path(sys.executable).with_name(name)


if __name__ == "__main__":
    main()
