"""The next visit, held out whole: the product as served beside the rules of one line.

    python -m tests.benchmarks.bench_next_visit --data demo,online-retail --max-minutes 4

Of each user with two visits at least, the last visit (all events of its time stamp, or within `--gap` seconds of the
event before) is the test target. The product is trained on everything before by `segrec-train run` with the README's
defaults, served by `segrec-serve`, and gives each user ten items through the client, by each strategy, repeats allowed.
The rules see the same events; half-life and settings are chosen on the visit before the last. The figures are HR@10,
recall@10 and NDCG@10 of the visit's set of items, items without a negative action, and how far NDCG@10 is from that of
the best rule (95 % bootstrap over users, paired). Items that the events before do not have count as missed. Logs are
read from `../shared/data`, which is not part of the project; `demo` is. Ends in one JSON line.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from segrec import SegrecClient

from tests.benchmarks import next_visit_rules as rules
from tests.benchmarks.common import show
from tests.benchmarks.next_visit_rules import HALF_LIVES, TIFU_SETTINGS, TOP, Histories
from training.data import demo
from training.data.timestamps import numbers_to_milliseconds
from training.metrics import bootstrap_interval

DATA = Path(__file__).parents[3] / "shared" / "data"
LOGS = ("demo", "online-retail", "taobao-sample", "deskdrop")
STRATEGIES = ("hybrid", "personal", "segment", "popular")
NEGATIVE = {"online-retail": ("return",)}
"""Actions that are no target and no history of a rule."""

Figures = Mapping[str, NDArray[np.float64]]
"""HR@10, recall@10 and NDCG@10 of each user, (U,) each."""


class SplitLog(NamedTuple):
    """`history`: events before last visits; `targets`: user_id, item_id (a list) and asked_at of each last visit."""

    history: pl.DataFrame
    targets: pl.DataFrame


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(LOGS), help=f"Some of {','.join(LOGS)}.")
    parser.add_argument("--gap", type=float, default=0.0, help="Seconds between events of one visit.")
    parser.add_argument("--max-minutes", type=float, default=4.0, help="Of training, for each log.")
    parser.add_argument("--seed", type=int, default=0, help="Of training.")
    parser.add_argument("--rules-only", action="store_true", help="Train and serve nothing.")
    options = parser.parse_args()
    names = options.data.split(",")
    if unknown := [name for name in names if name not in LOGS]:
        sys.exit(f"There is no log {', '.join(unknown)} here; known: {', '.join(LOGS)}.")
    if missing := [name for name in names if name != "demo" and not (DATA / name).is_dir()]:
        sys.exit(f"{DATA} has no {', '.join(missing)}; choose others with --data (demo needs nothing).")
    rows, measured = [], {}
    for name in names:
        found = figures_of(name, options)
        rows += table_of(name, found)
        measured[name] = {way: [float(column.mean()) for column in ways.values()] for way, ways in found.items()}
    columns = ("log: what is recommended", "HR@10", "recall@10", "NDCG@10", "to the best rule (95 %)")
    show("The next visit, ten items, repeats allowed", columns, rows, {"benchmark": "next_visit", "rows": measured})


def figures_of(name: str, options: argparse.Namespace) -> dict[str, Figures]:
    """All ways of one log."""
    with tempfile.TemporaryDirectory() as temporary:
        events, items, users = files_of(name, Path(temporary))
        test = split(pl.read_parquet(events), options.gap, NEGATIVE.get(name, ()))
        found = figures_of_rules(test, split(test.history, options.gap, NEGATIVE.get(name, ())))
        if not options.rules_only:
            found = figures_of_product(name, test, (items, users), Path(temporary), options) | found
    return found


def files_of(name: str, directory: Path) -> tuple[Path, Path | None, Path | None]:
    """The log's events, items and users, None where it has none."""
    if name == "demo":
        files = demo.write_demo(directory / "demo")
        return files.events, files.items, files.users
    items, users = (
        path if path.is_file() else None for path in (DATA / name / f"{kind}.parquet" for kind in ("items", "users"))
    )
    return DATA / name / "interactions.parquet", items, users


def split(events: pl.DataFrame, gap_seconds: float, negative: tuple[str, ...]) -> SplitLog:
    """Hold each user's last visit out, of users with two at least."""
    events = events.with_columns(pl.col("user_id", "item_id").cast(pl.String), milliseconds=_milliseconds(events))
    events = events.sort("user_id", "milliseconds", maintain_order=True)
    began = (pl.col("milliseconds").diff().over("user_id") > 1000 * gap_seconds).fill_null(True)
    events = events.with_columns(visit=began.cast(pl.Int64).cum_sum().over("user_id"))
    last = pl.col("visit") == pl.col("visit").max().over("user_id")
    held = last & (pl.col("visit").max().over("user_id") > 1)
    taken = events.filter(held & ~pl.col("action").cast(pl.String).is_in(negative))
    targets = taken.group_by("user_id", maintain_order=True).agg(
        pl.col("item_id").unique(maintain_order=True), pl.col("milliseconds").min().alias("asked_at")
    )
    return SplitLog(events.filter(~held), targets)


def _milliseconds(events: pl.DataFrame) -> pl.Series:
    """Times as `segrec-train` reads them: numbers can be seconds."""
    times = events["timestamp"]
    if times.dtype.is_temporal():
        return times.dt.epoch("ms")
    return numbers_to_milliseconds(times.cast(pl.Float64))[0]


def figures_of_rules(test: SplitLog, validation: SplitLog) -> dict[str, Figures]:
    """Every rule on the test visits; settings are those that are best on the visits before."""
    histories, targets = histories_of(test)
    past, past_targets = histories_of(validation)

    def ndcg_before(scores: rules.Scores) -> float:
        return float(score(rules.top_items(scores), past_targets)["ndcg"].mean())

    half_life = max(HALF_LIVES, key=lambda days: ndcg_before(rules.own_fading(past, days)))
    tifu = max(TIFU_SETTINGS, key=lambda settings: ndcg_before(rules.tifu_knn(past, settings)))
    scores = {
        **rules.rules(histories),
        f"own, fading, half-life {half_life:g} days": rules.own_fading(histories, half_life),
        "TIFU-KNN": rules.tifu_knn(histories, tifu),
    }
    return {name: score(rules.top_items(found), targets) for name, found in scores.items()}


def histories_of(log: SplitLog) -> tuple[Histories, list[set[int]]]:
    """The histories of the users who have a target, and the item rows of each target; unknown items are below 0."""
    catalogue = log.history["item_id"].unique(maintain_order=True)
    row_of = {item: row for row, item in enumerate(catalogue.to_list())}
    users = log.targets.select("user_id", "asked_at").with_row_index("user")
    events = log.history.join(users, on="user_id", how="inner", maintain_order="left")
    item = events["item_id"].replace_strict(list(row_of), list(row_of.values()), return_dtype=pl.Int64).to_numpy()
    user = events["user"].to_numpy().astype(np.int64)
    visit = events.select(pl.struct("user", "visit").rle_id().cast(pl.Int64)).to_series().to_numpy()
    histories = Histories(
        user, item, visit, events["milliseconds"].to_numpy(), users["asked_at"].to_numpy(), len(catalogue)
    )
    unknown = -1
    targets = []
    for items in log.targets["item_id"].to_list():
        targets.append({row_of.get(one, unknown - place) for place, one in enumerate(items)})
    return histories, targets


def score(recommended: NDArray[np.int64], targets: list[set[int]]) -> Figures:
    """HR, recall and NDCG of ten rows a user (U, 10) against the rows of the visit."""
    discounts = 1 / np.log2(np.arange(2, TOP + 2))
    ideal = np.cumsum(discounts)
    hit = np.array(
        [[row in target for row in rows] for rows, target in zip(recommended.tolist(), targets, strict=True)]
    )
    size = np.array([len(target) for target in targets])
    return {
        "hr": hit.any(axis=1).astype(float),
        "recall": hit.sum(axis=1) / size,
        "ndcg": (hit * discounts).sum(axis=1) / ideal[np.minimum(size, TOP) - 1],
    }


def figures_of_product(
    name: str, test: SplitLog, tables: tuple[Path | None, Path | None], directory: Path, options: argparse.Namespace
) -> dict[str, Figures]:
    """Train, publish and serve the product on the history, and ask for each user through the client."""
    events = directory / "history.parquet"
    test.history.drop("milliseconds", "visit").write_parquet(events)
    run, repository = directory / "runs" / "next-visit", directory / "repository"
    command = [_script("segrec-train"), "run", "--events", events, "--run", run.name, "--runs", run.parent]
    command += ["--repository", repository, "--max-minutes", options.max_minutes, "--seed", options.seed]
    for flag, path in zip(("--items", "--users"), tables, strict=True):
        command += [flag, path] if path else []
    if name == "demo":
        config = directory / "demo.toml"
        config.write_text("[clean]\nmin_events_per_item = 5\n[train]\nmax_length = 100\n")
        command += ["--config", config]
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    users, targets = test.targets["user_id"].to_list(), test.targets["item_id"].to_list()
    with serving(repository, run / "prepare" / "events.parquet", directory) as address, SegrecClient(address) as client:
        return {f"Segrec, {strategy}": recommended_by(client, strategy, users, targets) for strategy in STRATEGIES}


def recommended_by(client: SegrecClient, strategy: str, users: list[str], targets: list[list[str]]) -> Figures:
    """The figures of one strategy; ends the benchmark where an answer is degraded."""
    rows = []
    for user, target in zip(users, targets, strict=True):
        answer = client.recommend(user, top_k=TOP, strategy=strategy, exclude_seen=False)
        if answer.info.degraded:
            sys.exit("An answer was degraded, so no figures can be given: try again on a quieter machine.")
        place = {item: row for row, item in enumerate(target)}
        rows.append([place.get(item.item_id, -1) for item in answer.items] + [-1] * (TOP - len(answer.items)))
    return score(np.array(rows), [set(range(len(target))) for target in targets])


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


def table_of(name: str, found: Mapping[str, Figures]) -> list[tuple[str, ...]]:
    """A row a way, with the paired difference to the rule of the highest NDCG@10."""
    is_rule = {way: not way.startswith("Segrec") for way in found}
    best = max((way for way in found if is_rule[way]), key=lambda way: found[way]["ndcg"].mean())
    rows = []
    for way, figures in found.items():
        low, high = bootstrap_interval(figures["ndcg"] - found[best]["ndcg"], seed=0)
        difference = "the best rule" if way == best else f"{low:+.4f} to {high:+.4f}"
        rows.append((f"{name}: {way}", *(f"{figures[key].mean():.3f}" for key in ("hr", "recall", "ndcg")), difference))
    return rows


if __name__ == "__main__":
    main()
