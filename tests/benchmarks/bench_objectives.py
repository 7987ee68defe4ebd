"""What each objective does to next items, to what user embeddings tell of users, and to segments.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_objectives --data ml-100k --epochs 8

Five trainings of as many epochs, on one thread, without early stopping. NDCG@10 and HR@10: leave-one-out, all items
ranked, test targets. Probes: area under the ROC curve of logistic regressions on user embeddings, five folds, one
class against the rest; `last` is the served embedding, `mean` the mean over positions. Labels of many values are cut
into quarters; classes of few users are left out. Half-ARI: each user's events are dealt into two halves, both are
embedded and clustered, and the two clusterings compared (adjusted Rand index). Logs are read from `../shared/data`,
which is not part of the project; `demo` is. Ends in one JSON line.
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from server.core.features import Features, batches
from server.core.preprocessing import Preprocessing
from server.core.segments import normalised
from tests.benchmarks.common import show
from training import demo
from training.config import Config, Objectives
from training.encoder import Encoder
from training.evaluate import LEAVE_ONE_OUT, evaluate
from training.kmeans import fit_kmeans
from training.prepare import prepare
from training.runs import Run
from training.sequences import read_log
from training.train import load_encoder, train

DATA = Path("../shared/data")
ROWS = {
    "next_item": Objectives(),
    "next_item + feature_mse": Objectives(feature_mse=1.0),
    "next_item + contrastive": Objectives(contrastive=0.1),
    "feature_mse alone": Objectives(next_item=0, feature_mse=1.0),
    "contrastive alone": Objectives(next_item=0, contrastive=1.0),
}
K = 8
_FOLDS, _CLASS_USERS_MIN, _CLASSES_MAX = 5, 20, 30


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--max-minutes", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        run = prepared(Path(name), options.data)
        figures = {}
        for objective, weights in ROWS.items():
            settings = run.config().train.model_copy(
                update={
                    "objectives": weights,
                    "epochs": options.epochs,
                    "patience": options.epochs,
                    "max_minutes": options.max_minutes,
                    "seed": options.seed,
                }
            )
            start = time.process_time()
            epochs = train(run, settings=settings).epochs
            figures[objective] = {"epochs": epochs, "CPU s": round(time.process_time() - start)} | measured(run)
            print(objective, figures[objective], file=sys.stderr, flush=True)
    columns = list(figures["next_item"])
    show(
        f"Objectives on {options.data}, {options.epochs} epochs at most, seed {options.seed}",
        ("objective", *columns),
        [(name, *(f"{row[column]:.4g}" for column in columns)) for name, row in figures.items()],
        {"benchmark": "objectives", "data": options.data, "seed": options.seed, "rows": figures},
    )


def prepared(directory: Path, data: str) -> Run:
    """A run in `directory` whose log is prepared."""
    run = Run.create(directory, "objectives")
    if data == "demo":
        log = demo.write_demo(directory / ".demo")
        prepare(run, log.events, log.items, log.users, demo.CONFIG)
        return run
    source = DATA / data
    if not source.is_dir():
        sys.exit(f"There is no {source}: the logs are not part of the project; `--data demo` needs none of them.")
    items, users = source / "items.parquet", source / "users.parquet"
    tables = (items if items.is_file() else None, users if users.is_file() else None)
    prepare(run, source / "interactions.parquet", *tables, Config())
    return run


def measured(run: Run) -> dict[str, float]:
    """Figures of a trained run by name; larger is better."""
    [leave_one_out] = [
        result.figures
        for result in evaluate(run).results
        if (result.protocol, result.method) == (LEAVE_ONE_OUT, "encoder")
    ]
    encoder = load_encoder(run.path / "train")
    preprocessing = Preprocessing.model_validate_json((run.path / "prepare" / "preprocessing.json").read_bytes())
    log = read_log(run.path / "prepare", preprocessing)
    figures = {"NDCG@10": leave_one_out["ndcg@10"], "HR@10": leave_one_out["hr@10"]}
    users = run.path / "prepare" / "users.parquet"
    ways = embedded(encoder, log.features)
    if users.is_file():
        labels = log.users.to_frame("user_id").join(
            pl.read_parquet(users), on="user_id", how="left", maintain_order="left"
        )
        for label in labels.drop("user_id"):
            classes = classes_of(label)
            if classes.drop_nulls().n_unique() > 1:
                figures |= {f"{label.name} {way}": probed(x, classes) for way, x in ways.items()}
    return figures | half_agreement(encoder, log.features)


def embedded(encoder: Encoder, features: Features) -> dict[str, NDArray[np.float32]]:
    """User embeddings (U, D): of the last position, and the mean over positions."""
    last = np.zeros((len(features.lengths), encoder.shape.embedding_dim), np.float32)
    mean = last.copy()
    with torch.inference_mode():
        for rows, arrays in batches(features, encoder.shape.max_length):
            inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
            sequence, known = encoder.sequence(**inputs), (inputs["item_index"] > 0).unsqueeze(-1)
            last[rows] = sequence[:, -1].numpy()
            mean[rows] = ((sequence * known).sum(1) / known.sum(1)).numpy()
    return {"last": last, "mean": mean}


def classes_of(label: pl.Series) -> pl.Series:
    """The classes of a label as text, null for users who are not asked about."""
    if label.dtype.is_numeric() and label.n_unique() > _CLASSES_MAX:
        label = label.qcut(4, allow_duplicates=True)
    text = label.cast(pl.String)
    counts = text.value_counts().filter(pl.col("count") >= _CLASS_USERS_MIN)
    kept = counts[label.name].drop_nulls()
    return text.to_frame().select(pl.when(pl.col(label.name).is_in(kept.implode())).then(label.name)).to_series()


def probed(embeddings: NDArray[np.float32], classes: pl.Series) -> float:
    """Area under the ROC curve, weighted by classes."""
    known = classes.is_not_null().to_numpy()
    y = classes.drop_nulls().to_numpy()
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chances = cross_val_predict(model, embeddings[known], y, cv=folds, method="predict_proba")
    if chances.shape[1] == 2:
        return float(roc_auc_score(y == np.unique(y)[1], chances[:, 1]))
    return float(roc_auc_score(y, chances, multi_class="ovr", average="weighted"))


def half_agreement(encoder: Encoder, features: Features) -> dict[str, float]:
    """How far segments by one random half of each user's events are those by the other half, 1 at most."""
    side = np.random.default_rng(0).random(len(features.item_index)) < 0.5
    halves = [embedded(encoder, part(features, chosen)) for chosen in (side, ~side)]
    found = {}
    for way in ("last", "mean"):
        both = halves[0][way].any(1) & halves[1][way].any(1)
        labels = [fit_kmeans(normalised(half[way][both]), K, engine="sklearn", seed=0).labels for half in halves]
        found[f"half-ARI {way}"] = float(adjusted_rand_score(*labels))
    return found


def part(features: Features, chosen: NDArray[np.bool_]) -> Features:
    """Histories of the `chosen` events (N,) only; gaps stay those of the whole."""
    owner = np.repeat(np.arange(len(features.lengths)), features.lengths)[chosen]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(features.lengths)))])
    return Features(
        features.item_index[chosen],
        features.action_index[chosen],
        features.value[chosen],
        features.gap_index[chosen],
        offsets,
        features.ignored,
    )


if __name__ == "__main__":
    main()
