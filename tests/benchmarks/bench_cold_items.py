"""Items that training never saw, recommended for their text: one item in ten is held out with all its events.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_cold_items --log ml-100k --max-minutes 3

Each user's log ends at the newest event on a held-out item, which is the target, after at least five events on other
items; training sees what came before, without the held-out items. They are ranked among all items (those of the history
left out where the log's settings say so) and among themselves. Beside the encoder: popularity, which knows nothing of
them and breaks ties by chance; chance; and the text alone, by inner product with the mean of the history's texts. The
encoder is trained twice, with text and without, to show what text does to the items that training saw. Logs are those
of ../shared/data, or `demo`. Ends in one JSON line.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.core.features import batches
from server.core.preprocessing import Preprocessing
from tests.benchmarks.common import show
from training.config import Config, Text
from training.data.demo import CONFIG as DEMO
from training.data.demo import write_demo
from training.data.item_text import VECTORS
from training.data.prepare import prepare
from training.data.sequences import EventLog, HeldOut, read_log, seen_pairs, select_targets
from training.fit.train import train
from training.metrics import hit_rate, ndcg_each, target_ranks
from training.model.weights import load_encoder
from training.runs import Run

DATA = Path(__file__).parents[3] / "shared" / "data"
HELD_OUT_SHARE = 0.1
HISTORY_MIN = 5
_AT_ONCE = 256

Scorer = Callable[[HeldOut], Tensor]
"""Targets → scores of all items for their users, (T, V), free to be overwritten."""


@dataclass(frozen=True)
class Split:
    """The training log, and for each user asked the held-out item that came next: user_id, target."""

    events: pl.DataFrame
    targets: pl.DataFrame
    cold: pl.Series


def split(events: pl.DataFrame, seed: int) -> Split:
    """Hold out items by seed, and end each user's log at the newest event on one of them."""
    items = events["item_id"].unique().sort()
    cold = items.sample(round(len(items) * HELD_OUT_SHARE), seed=seed)
    ordered = events.sort("user_id", "timestamp", maintain_order=True).with_columns(
        pl.col("item_id").is_in(cold.implode()).alias("cold"), pl.int_range(pl.len()).over("user_id").alias("place")
    )
    newest = ordered.filter("cold").group_by("user_id").agg(pl.col("item_id", "place").last().name.prefix("target_"))
    before = ordered.join(newest, on="user_id", how="left").filter(
        ~pl.col("cold"), pl.col("target_place").is_null() | (pl.col("place") < pl.col("target_place"))
    )
    enough = before.group_by("user_id").len().filter(pl.col("len") >= HISTORY_MIN)
    targets = newest.join(enough, on="user_id", how="semi").sort("user_id")
    kept = before.drop("cold", "place", "target_item_id", "target_place")
    return Split(kept, targets.select("user_id", pl.col("target_item_id").alias("target")), cold)


def log_files(name: str, directory: Path, config: Config) -> tuple[pl.DataFrame, Path]:
    """Events, and the table of the items that occur in them often enough to stay."""
    source = write_demo(directory) if name == "demo" else None
    events = pl.read_parquet(source.events if source else DATA / name / "interactions.parquet")
    counts = events.group_by("item_id").len().filter(pl.col("len") >= config.clean.min_events_per_item)
    events = events.join(counts, on="item_id", how="semi", maintain_order="left")
    items = pl.read_parquet(source.items if source else DATA / name / "items.parquet")
    items.join(counts, on="item_id", how="semi").write_parquet(directory / "items.parquet")
    return events, directory / "items.parquet"


def trained(directory: Path, items: Path, config: Config, name: str) -> Run:
    """A run up to the encoder, with the item table of all items, held out or not."""
    run = Run.create(directory / "runs", name)
    prepare(run, directory / "events.parquet", items, None, config)
    train(run)
    return run


def measure(run: Run, parted: Split) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Figures by way of ranking; and how many targets, items and held-out items there are."""
    prepared = run.require("prepare")
    preprocessing = Preprocessing.model_validate_json((prepared / "preprocessing.json").read_bytes())
    catalogue = pl.read_parquet(prepared / "items.parquet").with_row_index("row")
    log = read_log(prepared, preprocessing)
    users = pl.DataFrame({"user_id": log.users}).with_row_index("user")
    asked = parted.targets.join(users, on="user_id").join(catalogue, left_on="target", right_on="item_id")
    rows = asked["user"].to_numpy().astype(np.intp)
    held = HeldOut(rows, log.features.offsets[1:][rows], (asked["row"] + 1).cast(pl.Int32).to_numpy())
    cold = torch.from_numpy(catalogue["item_id"].is_in(parted.cold.implode()).to_numpy())
    counts = torch.from_numpy(catalogue["event_count"].to_numpy().astype(np.float32))
    drawn = torch.Generator().manual_seed(0)
    ways: dict[str, Scorer] = {
        "encoder, with text": by_encoder(run, log),
        "text alone": by_text(np.load(prepared / VECTORS), log),
        "popularity": lambda part: counts + torch.rand((len(part.rows), len(counts)), generator=drawn),
        "chance": lambda part: torch.rand((len(part.rows), len(counts)), generator=drawn),
    }
    figures = {}
    for name, scorer in ways.items():
        ranks: dict[str, list[Tensor]] = {"all": [], "cold": []}
        for start in range(0, len(rows), _AT_ONCE):
            part = select_targets(held, np.arange(start, min(start + _AT_ONCE, len(rows))))
            scores, targets = scorer(part), torch.from_numpy(part.targets.astype(np.int64) - 1)
            if preprocessing.exclude_seen:
                place, row = (torch.from_numpy(array) for array in seen_pairs(log, part))
                scores[place, row] = -torch.inf
            ranks["all"].append(target_ranks(scores, targets))
            ranks["cold"].append(target_ranks(scores.masked_fill(~cold, -torch.inf), targets))
        found = {among: torch.cat(parts).numpy() for among, parts in ranks.items()}
        figures[name] = {f"{among} hr@10": hit_rate(ranks, 10) for among, ranks in found.items()}
        figures[name] |= {f"{among} ndcg@10": float(ndcg_each(ranks, 10).mean()) for among, ranks in found.items()}
    return figures, {"targets": len(rows), "items": len(catalogue), "held_out": int(cold.sum())}


def by_encoder(run: Run, log: EventLog) -> Scorer:
    """The encoder's logits."""
    encoder = load_encoder(run.require("train"))
    length = encoder.shape.max_length
    with torch.no_grad():
        items = encoder.item_embeddings().T.contiguous()

    def scores(part: HeldOut) -> Tensor:
        users = torch.zeros(len(part.rows), encoder.shape.embedding_dim)
        with torch.no_grad():
            for places, inputs in batches(log.histories(part.rows, part.ends, length), length):
                users[places] = encoder(**{name: torch.from_numpy(array) for name, array in inputs.items()})
            return users @ items

    return scores


def by_text(vectors: NDArray[np.float32], log: EventLog) -> Scorer:
    """Inner product with the mean of the newest fifty text vectors, less what all texts have in common."""
    centred = vectors - vectors.mean(0)

    def scores(part: HeldOut) -> Tensor:
        newest = (
            log.features.item_index[max(end - 50, log.features.offsets[row]) : end] - 1
            for row, end in zip(part.rows, part.ends, strict=True)
        )
        return torch.from_numpy(np.stack([centred[rows].mean(0) for rows in newest]) @ centred.T)

    return scores


def main() -> None:
    """Hold out, train, measure, show."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--log", default="ml-100k")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--max-minutes", type=float, default=3.0)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.log != "demo" and not (DATA / asked.log).is_dir():
        raise SystemExit(f"{DATA / asked.log} is missing: this benchmark reads its logs there, or takes --log demo.")
    base = DEMO if asked.log == "demo" else Config()
    changes = {"max_minutes": asked.max_minutes, "epochs": asked.epochs, "seed": asked.seed}
    quick = base.train.model_copy(update=changes)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        events, items = log_files(asked.log, directory, base)
        parted = split(events, asked.seed)
        parted.events.write_parquet(directory / "events.parquet")
        warm = {}
        for name, text in (("with", Text(model=asked.model)), ("without", Text())):
            run = trained(directory, items, base.model_copy(update={"train": quick, "text": text}), f"{name}-text")
            warm[name] = run.record()["stages"]["train"]["figures"]["validation_ndcg@10"]
            if name == "with":
                figures, sizes = measure(run, parted)
    columns = ("way", "HR@10, all items", "NDCG@10", "HR@10, held-out items", "NDCG@10")
    keys = ("all hr@10", "all ndcg@10", "cold hr@10", "cold ndcg@10")
    rows = [(name, *(f"{found[key]:.4f}" for key in keys)) for name, found in figures.items()]
    title = f"{asked.log}: {sizes['targets']:,} targets among {sizes['held_out']:,} held-out items of "
    title += f"{sizes['items']:,}; NDCG@10 on validation: {warm['with']:.4f} with text, {warm['without']:.4f} without"
    show(title, columns, rows, {"log": asked.log, **sizes, "warm_ndcg@10": warm, **figures})


if __name__ == "__main__":
    main()
