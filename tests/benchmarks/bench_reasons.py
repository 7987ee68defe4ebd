"""Are the reasons of a running server true, and are all titles of an answer different?

    make run                                         # in another terminal
    python -m tests.benchmarks.bench_reasons --events runs/demo/prepare/events.parquet

Asks for ten items of each of 200 users, with their explanations, by each strategy. Counts answers with two items of
one title, beside the same calls with `include_variants`; scores that are not the sum of their parts to 1e-3; items
whose reason is not the largest part; and, by hybrid and personal, items without an item of the history. Prints the
median times of calls with and without `explain`, users cached. Ends in one JSON line, with exit code 1 if a count but
the one beside is not 0.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import polars as pl
from segrec import SegrecClient, enum_name
from segrec.v1.segrec_service_pb2 import RecommendedItem, Strategy

from tests.benchmarks.common import show

USERS = 200
STRATEGIES = ("hybrid", "personal", "segment", "popular")
READS_HISTORY = ("hybrid", "personal")
TOLERANCE = 1e-3
PARTS_OF_REASONS = {"again": "own_history", "personal": "encoder", "popular": "popularity"}
"""The part of a reason, where it has another name."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1:50051")
    parser.add_argument("--events", type=Path, required=True, help="Prepared events whose users are asked for.")
    options = parser.parse_args()
    users = pl.scan_parquet(options.events).select(pl.col("user_id").cast(pl.String).unique().sort()).collect()
    chosen = users["user_id"].sample(min(USERS, len(users)), seed=0).to_list()
    counts = {strategy: Counter[str]() for strategy in STRATEGIES}
    milliseconds: dict[str, dict[str, float]] = {}
    with SegrecClient(options.address) as client:
        for strategy, count in counts.items():
            kind = Strategy.Value(f"STRATEGY_{strategy.upper()}")
            seconds: dict[bool, list[float]] = {False: [], True: []}
            for user in chosen:
                items = client.recommend(user, strategy=kind, explain=True).items
                all_variants = client.recommend(user, strategy=kind, include_variants=True).items
                for explain, times in seconds.items():
                    start = time.perf_counter()
                    client.recommend(user, strategy=kind, explain=explain)
                    times.append(time.perf_counter() - start)
                count["answers with doubles"] += _has_doubles(items)
                count["with include_variants"] += _has_doubles(all_variants)
                count["items"] += len(items)
                count["sums that differ"] += sum(not _adds_up(item) for item in items)
                count["reasons that are not the largest part"] += sum(not _is_true(item) for item in items)
                nothing_told = sum(not item.explanation.history_items for item in items)
                count["without history items"] += nothing_told if strategy in READS_HISTORY else 0
            milliseconds[strategy] = {
                "plain, ms": round(1000 * median(seconds[False]), 2),
                "explain, ms": round(1000 * median(seconds[True]), 2),
            }
    names = list(counts["hybrid"])
    rows = [
        (strategy, *(count[name] for name in names), *milliseconds[strategy].values())
        for strategy, count in counts.items()
    ]
    headers = ("strategy", *names, *milliseconds["hybrid"])
    figures = {"benchmark": "reasons", "counts": counts, "milliseconds": milliseconds}
    show(f"{len(chosen)} users, ten items each", headers, rows, figures)
    wrong = [name for name in names if name not in ("items", "with include_variants")]
    if any(count[name] for count in counts.values() for name in wrong) or not all(c["items"] for c in counts.values()):
        sys.exit("An answer is not as it should be.")


def _has_doubles(items: Iterable[RecommendedItem]) -> bool:
    titles = [item.title for item in items if item.title]
    return len(set(titles)) < len(titles)


def _adds_up(item: RecommendedItem) -> bool:
    explanation = item.explanation
    return abs(explanation.base + sum(part.value for part in explanation.parts) - item.score) <= TOLERANCE


def _is_true(item: RecommendedItem) -> bool:
    largest = max(item.explanation.parts, key=lambda part: part.value)
    reason = enum_name(item, "reason")
    return PARTS_OF_REASONS.get(reason, reason) == enum_name(largest, "part")


if __name__ == "__main__":
    main()
