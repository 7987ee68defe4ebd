"""One-line rules, measured on the validation targets of a training, to stand beside what a search found."""

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from server.core.repository.layout import read_preprocessing
from training.data.sequences import read_sequences
from training.errors import RunError
from training.evaluation.baselines import popularity_counts
from training.fit.loaders import validation_loader
from training.fit.processes import Processes
from training.metrics import ndcg_each, target_ranks
from training.runs import Run

POPULAR = "popularity"
OWN_ITEMS = "own items, most frequent first"


def rule_figures(run: Run, seed: int) -> dict[str, float]:
    """NDCG@10 of each rule, from 0 to 1, over the targets that a training with this seed validates with.

    Raises RunError for a log of which no user can validate.
    """
    prepared = run.require("prepare")
    preprocessing = read_preprocessing(prepared)
    log = read_sequences(prepared, preprocessing)
    item_count = pl.scan_parquet(prepared / "items.parquet").select(pl.len()).collect().item()
    loader = validation_loader(log, preprocessing, item_count, seed, Processes())
    if loader is None:
        raise RunError(f"No user of {run.path} has events to validate with, so settings cannot be compared.")
    counts = popularity_counts(log, preprocessing, item_count)[POPULAR]
    popularity = torch.from_numpy(counts / (counts.max() + 1)).float()
    gains: dict[str, list[NDArray[np.float64]]] = {POPULAR: [], OWN_ITEMS: []}
    for batch in loader:
        items = batch["item_index"]
        own = torch.zeros(len(items), item_count + 1).scatter_add_(1, items.long(), torch.ones(items.shape))[:, 1:]
        for name, scores in ((POPULAR, popularity.repeat(len(items), 1)), (OWN_ITEMS, own + popularity)):
            scores[batch["seen_place"], batch["seen_row"]] = -torch.inf
            ranks = target_ranks(scores[batch["place"]], batch["target"])
            gains[name].append(ndcg_each(ranks.numpy(), 10))
    return {name: float(np.concatenate(each).mean()) for name, each in gains.items()}
