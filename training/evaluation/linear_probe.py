"""Linear probes: what a logistic regression can tell about users from their vectors, on users it was not shown."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold, cross_validate

USERS_A_CLASS = 20
CLASSES_MAX = 30
NUMBERS_MAX = 10
"""A column of numbers with more different values than this is cut into quantiles."""

QUANTILES = 4

_FOLDS = 5
_STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of the penalty, of which each fold chooses one by log loss on its own training users: what suits
64 numbers is too much for 320, and one for all would favour the vectors that it suits."""

_INNER_FOLDS = 3
_STEPS = 300


@dataclass(frozen=True, slots=True)
class Label:
    """What is known of some users: `rows` (n,) of the users, and the class of each, (n,), from 0 to `classes` - 1."""

    name: str
    rows: NDArray[np.intp]
    classes: NDArray[np.intp]

    @property
    def majority(self) -> float:
        """Share of the largest class: what naming it for everyone gets right."""
        return float(np.bincount(self.classes).max() / len(self.classes))


@dataclass(frozen=True, slots=True)
class Probe:
    """How well one kind of vector tells a label, means over `_FOLDS` folds, both in [0, 1].

    `auroc` is the mean over classes, each against the rest; .5 is chance.
    """

    auroc: float
    accuracy: float


def user_labels(table: pl.DataFrame, user_ids: pl.Series) -> tuple[list[Label], list[str]]:
    """Every column of `table` (user_id and labels) that can be probed for the users `user_ids` (U,), and remarks.

    Classes of fewer than `USERS_A_CLASS` users are left out, and those beyond the `CLASSES_MAX` largest.
    """
    rows = pl.DataFrame({"user_id": user_ids, "row": np.arange(len(user_ids))})
    known = rows.join(table, on="user_id", how="left", maintain_order="left")
    labels, notes = [], []
    for name in known.columns[2:]:
        label, remarks = _label(name, known.select("row", pl.col(name).alias("value")).drop_nulls("value"))
        labels += [label] if label else []
        notes += remarks
    return labels, notes


def probe(vectors: NDArray[np.float64], label: Label, seed: int) -> Probe:
    """Cross-validate a logistic regression on `vectors` (U, D), its penalty chosen inside each fold.

    Directions are scaled alike, to a mean variance of 1, so that strengths mean the same for any D; they keep the
    lengths that a K-means sees. Made equally long, those that tell little would drown the others.
    """
    centred = vectors[label.rows] - vectors[label.rows].mean(0)
    scaled = centred / math.sqrt(np.mean(centred**2) or 1.0)
    inner = StratifiedKFold(_INNER_FOLDS, shuffle=True, random_state=seed)
    regression = LogisticRegressionCV(
        Cs=_STRENGTHS, cv=inner, scoring="neg_log_loss", max_iter=_STEPS, l1_ratios=(0.0,), use_legacy_attributes=False
    )
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    scoring = {"auroc": "roc_auc_ovr", "accuracy": "accuracy"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits change no figure that is shown
        found: Mapping[str, NDArray[np.float64]] = cross_validate(
            regression, scaled, label.classes, cv=folds, scoring=scoring, error_score="raise"
        )
    return Probe(float(found["test_auroc"].mean()), float(found["test_accuracy"].mean()))


def _label(name: str, known: pl.DataFrame) -> tuple[Label | None, list[str]]:
    """The label in `known` (row, value), or None, and what is to be said of it."""
    notes = []
    numbers = _as_numbers(known["value"])
    if numbers is not None and numbers.n_unique() > NUMBERS_MAX:
        cuts = np.unique(np.quantile(numbers.to_numpy(), np.arange(1, QUANTILES) / QUANTILES))
        values = pl.Series(np.searchsorted(cuts, numbers.to_numpy(), side="left")).cast(pl.String)
        told = ", ".join(f"{cut:g}" for cut in cuts)
        notes.append(f"{name}: numbers, cut into {len(cuts) + 1} classes after {told}")
    else:
        values = known["value"].cast(pl.String)
    counts = values.value_counts().sort("count", values.name or "", descending=[True, False])
    kept = counts.filter(pl.col("count") >= USERS_A_CLASS)[values.name].head(CLASSES_MAX).sort()
    dropped = len(counts) - len(kept)
    if len(kept) < 2:
        return None, [f"{name}: left out, fewer than two values have {USERS_A_CLASS} users"]
    chosen = values.is_in(kept.implode()).to_numpy()
    if dropped:
        notes.append(
            f"{name}: {dropped} of {len(counts)} values left out, with {int((~chosen).sum()):,} users; "
            f"a value needs {USERS_A_CLASS} users, and the {CLASSES_MAX} most frequent are taken"
        )
    classes = np.searchsorted(kept.to_numpy(), values.filter(chosen).to_numpy())
    return Label(name, known["row"].to_numpy()[chosen].astype(np.intp), classes.astype(np.intp)), notes


def _as_numbers(values: pl.Series) -> pl.Series | None:
    """The values as numbers, where all are."""
    if values.dtype.is_numeric():
        return values.cast(pl.Float64)
    numbers = values.cast(pl.Float64, strict=False) if values.dtype == pl.String else None
    return None if numbers is None or numbers.null_count() else numbers
