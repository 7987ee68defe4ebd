"""`Recommend` in a catalogue of a million items, with and without filters: processor time of the ranking.

    python -m tests.benchmarks.bench_filters --items 1000000

Items and users lie around a thousand directions, items have lengths that vary with their popularity, and there are
categories of 1 item in 2, in 10 and in 1,000. Ranks one user at a time, as a unary call does, with the release's
search lists and, in the same call, exactly. `recall` is the share of the exact ten that the lists find. Ends in one
JSON line. The limit of the project is 15 ms a call.
"""

import argparse
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime

import faiss
import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.own_items import PastEvents
from server.core.preprocessing import Action, Preprocessing, ValueNormaliser
from server.core.ranking.query import Query, Strategy, Subject
from server.core.ranking.rank import rank
from server.core.release import Golden, Manifest, RankedItems, Release, with_item_hashes
from tests.benchmarks.common import show
from training.segments.search_lists import search_lists

DIM, DIRECTIONS, CALLS, HISTORY = 64, 1000, 60, 500
LIMIT_MS = 15.0


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(DIRECTIONS, DIM)).astype(np.float32)
    exact = release_of(options.items, directions, rng)
    users = around(directions, 1000 + CALLS, rng)
    start = time.perf_counter()
    lists = search_lists(exact.item_embeddings, users[CALLS:], seed=0)
    seconds = time.perf_counter() - start
    if lists is None:
        sys.exit("No lists find enough of the best items of this catalogue.")
    quick = replace(exact, search_lists=lists)
    faiss.omp_set_num_threads(1)  # as `segrec-serve` does
    for release in (exact, quick):
        release.warm()
    pasts = [past(rng, options.items) for _ in range(CALLS)]
    subjects = [Subject(user, 1, events) for user, events in zip(users[:CALLS], pasts, strict=True)]
    rows: list[tuple[object, ...]] = []
    figures: dict[str, object] = {"benchmark": "filters", "items": options.items, "lists": len(lists.centroids)}
    figures |= {"probes": lists.probes, "recall_of_sample": round(lists.recall, 4), "seconds_to_make": round(seconds)}
    worst = 0.0
    for name, query in queries(exact).items():
        exact_ms, right = measured(exact, query, subjects)
        quick_ms, given = measured(quick, query, subjects)
        found = [len(set(one) & set(other)) / max(1, len(one)) for one, other in zip(right, given, strict=True)]
        rows.append((name, round(exact_ms, 2), round(quick_ms, 2), round(float(np.mean(found)), 4)))
        figures[name] = {"exact_ms": rows[-1][1], "lists_ms": rows[-1][2], "recall": rows[-1][3]}
        worst = max(worst, quick_ms)
    show("Filters", ("query", "exact, ms CPU", "lists, ms CPU", "recall"), rows, figures)
    if worst > LIMIT_MS:
        sys.exit(f"A call took {worst:.1f} ms, more than {LIMIT_MS}.")


def queries(release: Release) -> dict[str, Query]:
    """What is asked, by name."""
    some = tuple(release.item_ids[::1000][:100])
    plain = {
        "no filter": Query(),
        "one excluded item": Query(exclude_item_ids=some[:1]),
        "100 excluded items": Query(exclude_item_ids=some),
        "half excluded": Query(exclude_categories=("half",)),
        "a tenth": Query(include_categories=("tenth",)),
        "a thousandth": Query(include_categories=("thousandth",)),
        "100 candidates": Query(candidate_item_ids=some),
        "seen excluded": Query(exclude_seen=True),
        "top 500": Query(top_k=500),
        "diverse": Query(diversity=0.5),
    }
    return {name: replace(query, strategy=Strategy.PERSONAL) for name, query in plain.items()} | {
        "hybrid, one excluded item": Query(exclude_item_ids=some[:1])
    }


def measured(release: Release, query: Query, subjects: list[Subject]) -> tuple[float, list[list[int]]]:
    """Milliseconds of processor time a call, and the rows that each subject gets."""
    rank(release, query, subjects[:1])
    start = time.process_time()
    answers = [rank(release, query, [subject])[0] for subject in subjects]
    return 1000 * (time.process_time() - start) / len(subjects), [[item.row for item in one.items] for one in answers]


def around(directions: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Vectors (`count`, D) between two directions each."""
    first, second = directions[rng.integers(0, len(directions), (2, count))]
    mixed = first + second * rng.uniform(size=(count, 1)) + rng.normal(scale=0.5, size=first.shape)
    vectors: NDArray[np.float32] = mixed.astype(np.float32)
    return vectors


def past(rng: np.random.Generator, items: int) -> PastEvents:
    """A history of 500 events."""
    rows = rng.integers(0, items, HISTORY)
    times = np.sort(rng.integers(1_600_000_000_000, 1_700_000_000_000, HISTORY))
    return PastEvents(rows, np.ones(HISTORY, np.float32), times, np.ones(HISTORY, bool))


def release_of(items: int, directions: NDArray[np.float32], rng: np.random.Generator) -> Release:
    """A release in memory with one segment; its encoder and golden inputs are empty."""
    popularity = rng.pareto(1.2, items) + 1e-3
    vectors = directions[rng.integers(0, len(directions), items)]
    vectors = vectors + rng.normal(scale=0.7, size=vectors.shape).astype(np.float32)
    vectors *= (0.3 + 0.1 * np.log1p(popularity))[:, None].astype(np.float32)
    number = np.arange(items)
    category = [
        [name for name, every in (("half", 2), ("tenth", 10), ("thousandth", 1000)) if row % every == 0]
        for row in range(items)
    ]
    table = pl.DataFrame(
        {
            "item_id": pl.Series(number).cast(pl.String),
            "title": pl.Series(number).cast(pl.String),
            "group": pl.Series(number, dtype=pl.Int32),
            "category": pl.Series(category, dtype=pl.List(pl.String)),
            "popularity": np.log(popularity / popularity.sum()).astype(np.float32),
        }
    )
    best = np.argsort(-popularity)[:1000]
    listed = RankedItems((best + 1).astype(np.int32), np.log(popularity[best] / popularity.sum()).astype(np.float32))
    preprocessing = Preprocessing(
        max_length=100,
        actions=(Action(name="view", weight=1.0),),
        value=ValueNormaliser(method="log", center=1.0, scale=0.5),
        has_clock=True,
        exclude_seen=False,
    )
    manifest = Manifest(
        release=1,
        created_time=datetime.now(UTC),
        embedding_dim=DIM,
        max_length=100,
        item_count=items,
        segment_count=1,
        hybrid_weight=0.5,
        files={},
        golden=Golden(item_index=[], action_index=[], value=[], gap_index=[], user_embedding=[]),
    )
    centroids = np.zeros((1, DIM), np.float32)
    return Release(manifest, preprocessing, with_item_hashes(table), vectors, centroids, (), {1: listed})


if __name__ == "__main__":
    main()
