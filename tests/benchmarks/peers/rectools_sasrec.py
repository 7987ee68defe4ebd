"""RecTools SASRec on one split: the peer of bench_quality.py, run by it inside an environment of its own.

    .peers/rectools/bin/python tests/benchmarks/peers/rectools_sasrec.py TASK.npz RESULT.npz

Reads `task` (JSON: minutes, seed, max_length, settings of the model beside the defaults) and the arrays `train_user`,
`train_item`, `validation_user`, `validation_item`, each in time order. Trains until no epoch has gained NDCG@10 on the
validation targets for `PATIENCE` epochs or the minutes are up, and goes back to the best epoch. Then RecTools' own
`recommend` lists items for the users of the validation part, who are asked for the item after it. Writes `lists`
(T, LIST_LENGTH), items in the order of `validation_user`, -1 where there is none, and `facts` (JSON).
"""

import json
import logging
import math
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning
import torch
from numpy.typing import NDArray
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet

LIST_LENGTH = 20
PATIENCE = 10
EPOCHS = 1000
NEGATIVES = 256

SETTINGS = {"n_factors": 64, "n_blocks": 2, "n_heads": 2, "dropout_rate": 0.2, "batch_size": 128, "lr": 1e-3}
"""As in RecTools' own guide to training: 64 dimensions, 2 blocks, 2 heads; the others are its defaults."""

_VALIDATION_USERS = 5000
_USERS_AT_ONCE = 128


@dataclass(frozen=True)
class Split:
    """Two tables of user, item, weight and time, sorted by time. The first is for training."""

    train: pd.DataFrame
    validation: pd.DataFrame

    @property
    def all(self) -> pd.DataFrame:
        """What is known when the test target is asked for."""
        return pd.concat([self.train, self.validation], ignore_index=True)


class Keeper(Callback):
    """Validates after each epoch, keeps the best weights, and ends training when it gains nothing or time is up.

    Time is up where another validation, as long as the last one, would end too late.
    """

    def __init__(self, model: SASRecModel, split: Split, started: float, seconds: float, seed: int) -> None:
        self.curve: list[dict[str, float]] = []
        self.best = -math.inf
        self.best_epoch = 0
        self.time_is_up = False
        self._weights: dict[str, torch.Tensor] = {}
        self._model = model
        self._split = split
        self._started = started
        self._allowed = seconds
        self._seed = seed
        self._validation_seconds = 0.0
        self._targets: Targets | None = None

    def __deepcopy__(self, _: dict[int, Any]) -> "Keeper":
        """RecTools trains with a copy of its trainer; this callback is to be the one that was handed in."""
        return self

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._seconds() + self._validation_seconds > self._allowed:
            self.time_is_up = True
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, module: pytorch_lightning.LightningModule) -> None:
        begun = time.monotonic()
        self._targets = self._targets or Targets.of(self._model, self._split, self._seed)
        module.eval()
        ndcg = self._targets.ndcg(self._model)
        module.train()
        self._validation_seconds = time.monotonic() - begun
        epoch = len(self.curve) + 1
        self.curve.append({"epoch": epoch, "ndcg@10": ndcg, "seconds": round(self._seconds(), 1)})
        if ndcg > self.best:
            self.best, self.best_epoch = ndcg, epoch
            self._weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        print(f"  epoch {epoch}, {self._seconds():.0f} s, validation NDCG@10 {ndcg:.4f}", file=sys.stderr, flush=True)
        if epoch - self.best_epoch >= PATIENCE:
            trainer.should_stop = True

    def restore(self) -> None:
        """Put the best weights back."""
        self._model.lightning_model.load_state_dict(self._weights)

    def _seconds(self) -> float:
        return time.monotonic() - self._started


@dataclass(frozen=True)
class Targets:
    """Validation targets in the model's item numbers: histories `x` (T, L) padded left with 0, `items` (T,).

    `items` is 0 for a target that the model has never seen; `seen` are histories in full.
    """

    x: torch.Tensor
    items: torch.Tensor
    seen: list[NDArray[np.int64]]

    @classmethod
    def of(cls, model: SASRecModel, split: Split, seed: int) -> "Targets":
        """Those of `validated`."""
        asked = validated(split, seed)
        length = model.session_max_len
        to_internal = model.data_preparator.item_id_map.to_internal
        train = split.train[split.train[Columns.User].isin(asked[Columns.User])]
        train = train.assign(number=train[Columns.Item].map(to_internal)).dropna(subset=["number"])
        histories = {user: part.to_numpy(np.int64) for user, part in train.groupby(Columns.User)["number"]}
        seen = [histories.get(user, np.empty(0, np.int64)) for user in asked[Columns.User]]
        x = np.zeros((len(asked), length), np.int64)
        for row, history in enumerate(seen):
            newest = history[-length:]
            x[row, length - len(newest) :] = newest
        items = asked[Columns.Item].map(to_internal).fillna(0).to_numpy(np.int64)
        return cls(torch.from_numpy(x), torch.from_numpy(items), seen)

    def ndcg(self, model: SASRecModel) -> float:
        """Mean NDCG@10, all items ranked, those of the history left out."""
        gains = 0.0
        network = model.torch_model
        with torch.inference_mode():
            embeddings = network.item_model.get_all_embeddings()
            for start in range(0, len(self.items), _USERS_AT_ONCE):
                part = slice(start, start + _USERS_AT_ONCE)
                users = network.encode_sessions({"x": self.x[part]}, embeddings)[:, -1]
                scores = users @ embeddings.T
                scores[:, 0] = -torch.inf  # padding
                for row, seen in enumerate(self.seen[part]):
                    scores[row, torch.from_numpy(seen)] = -torch.inf
                own = scores.gather(1, self.items[part, None])
                ranks = torch.where(own.squeeze(1) > -torch.inf, (scores > own).sum(1), scores.shape[1])
                gains += float(torch.where(ranks < 10, 1 / torch.log2(ranks + 2.0), 0.0).sum())
        return gains / len(self.items)


def validated(split: Split, seed: int) -> pd.DataFrame:
    """At most `_VALIDATION_USERS` of the validation targets, drawn by seed."""
    asked = split.validation
    return asked.sample(_VALIDATION_USERS, random_state=seed) if len(asked) > _VALIDATION_USERS else asked


def main(task_path: Path, result_path: Path) -> None:
    """Train, recommend, and write."""
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    arrays = np.load(task_path)
    task = json.loads(str(arrays["task"]))
    seed_everything(task["seed"], verbose=False)
    split = _split(arrays)
    started, started_cpu = time.monotonic(), time.process_time()
    settings = {**SETTINGS, "session_max_len": task["max_length"], **task["settings"]}
    settings = {**loss_for(split.train[Columns.Item].nunique(), settings["n_factors"]), **settings}
    model = SASRecModel(item_net_block_types=(IdEmbeddingsItemNet,), recommend_torch_device="cpu", **settings)
    keeper = Keeper(model, split, started, 60 * task["minutes"], task["seed"])
    model._trainer = Trainer(  # the way of RecTools' guide, where the callback needs the model
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[keeper],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model.fit(Dataset.construct(split.train))
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - started_cpu
    keeper.restore()
    facts = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "epochs": len(keeper.curve),
        "best_epoch": keeper.best_epoch,
        "best_seconds": keeper.curve[keeper.best_epoch - 1]["seconds"],
        "ended": "time up" if keeper.time_is_up else "no more gain",
        "validation_ndcg@10": keeper.best,
        "recommended_validation_ndcg@10": _recommended_ndcg(model, split, validated(split, task["seed"])),
        "settings": settings,
        "curve": keeper.curve,
    }
    lists = recommended(model, split.all, split.validation[Columns.User])
    np.savez_compressed(result_path, lists=lists, facts=json.dumps(facts))


def loss_for(item_count: int, dim: int) -> dict[str, Any]:
    """RecTools' default, the full softmax, up to the catalogue with which it takes as much memory as negatives do.

    RecTools draws negatives for each position apart and gathers their embeddings: (NEGATIVES + 1) · dim numbers.
    Just below that size the full softmax takes about twice the time a step, and learns from every item.
    """
    if item_count <= (NEGATIVES + 1) * dim:
        return {"loss": "softmax"}
    return {"loss": "sampled_softmax", "n_negatives": NEGATIVES}


def recommended(model: SASRecModel, known: pd.DataFrame, users: pd.Series) -> NDArray[np.int64]:
    """What RecTools lists for each user, (T, LIST_LENGTH), without what they know; -1 where it lists nothing."""
    found = model.recommend(
        users.to_numpy(), Dataset.construct(known), LIST_LENGTH, filter_viewed=True, on_unsupported_targets="ignore"
    )
    place = pd.Series(np.arange(len(users)), index=users.to_numpy())
    lists = np.full((len(users), LIST_LENGTH), -1, np.int64)
    lists[place[found[Columns.User]].to_numpy(), found[Columns.Rank].to_numpy() - 1] = found[Columns.Item]
    return lists


def _recommended_ndcg(model: SASRecModel, split: Split, asked: pd.DataFrame) -> float:
    """NDCG@10 of RecTools' lists on the same validation targets: what the callback's figure must agree with."""
    lists = recommended(model, split.train, asked[Columns.User])[:, :10]
    hits = lists == asked[Columns.Item].to_numpy()[:, None]
    return float((hits / np.log2(np.arange(10) + 2.0)).sum(1).mean())


def _split(arrays: Any) -> Split:
    train = _table(arrays["train_user"], arrays["train_item"], 0)
    return Split(train, _table(arrays["validation_user"], arrays["validation_item"], len(train)))


def _table(users: NDArray[np.int64], items: NDArray[np.int64], start: int) -> pd.DataFrame:
    """Interactions, one a second, in the order given."""
    times = pd.to_datetime(np.arange(start, start + len(users)), unit="s")
    return pd.DataFrame({Columns.User: users, Columns.Item: items, Columns.Weight: 1.0, Columns.Datetime: times})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
