"""Linear probes: a logistic regression predicts labels of users from their vectors, measured on held-out users."""

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

USERS_PER_CLASS = 20
CLASSES_MAX = 30
NUMBERS_MAX = 10
"""A column of numbers with more distinct values than this is cut into quantiles."""

QUANTILES = 4

_FOLDS = 5
_STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Candidate inverse strengths of the penalty. Each fold chooses one by log loss on its own training users, since the
best strength depends on the length of the vectors, and a common strength would favour some kinds of vectors."""

_INNER_FOLDS = 3
_MAX_STEPS = 300


@dataclass(frozen=True, slots=True)
class Label:
    """A label of some users: their `rows` (n,) and their `classes` (n,), integers from 0."""

    name: str
    rows: NDArray[np.intp]
    classes: NDArray[np.intp]

    @property
    def majority(self) -> float:
        """Share of the largest class, which is the accuracy of a constant prediction."""
        return float(np.bincount(self.classes).max() / len(self.classes))


@dataclass(frozen=True, slots=True)
class Probe:
    """How well one kind of vector predicts a label: means over `_FOLDS` folds, in [0, 1], larger is better.

    `auroc` is the mean over the classes, each against the rest; 0.5 is chance.
    """

    auroc: float
    accuracy: float


def user_labels(table: pl.DataFrame, user_ids: pl.Series) -> tuple[list[Label], list[str]]:
    """The columns of `table` (user_id and labels) as labels of the users `user_ids` (U,), and notes on omissions.

    A label keeps the `CLASSES_MAX` largest classes, and only those with at least `USERS_PER_CLASS` users.
    """
    rows = pl.DataFrame({"user_id": user_ids, "row": np.arange(len(user_ids))})
    joined = rows.join(table, on="user_id", how="left", maintain_order="left")
    labels, notes = [], []
    for name in joined.columns[2:]:
        label, label_notes = _label(name, joined.select("row", pl.col(name).alias("value")).drop_nulls("value"))
        labels += [label] if label else []
        notes += label_notes
    return labels, notes


def probe(vectors: NDArray[np.float64], label: Label, seed: int) -> Probe:
    """Cross-validate a logistic regression on `vectors` (U, D); each fold chooses its penalty.

    All directions are scaled by one factor, to a mean variance of 1, so that a penalty means the same for any D. Their
    relative variances stay, as in K-means; with equal variances, noisy directions would hide the useful ones.
    """
    centred = vectors[label.rows] - vectors[label.rows].mean(0)
    scaled = centred / math.sqrt(np.mean(centred**2) or 1.0)
    inner = StratifiedKFold(_INNER_FOLDS, shuffle=True, random_state=seed)
    regression = LogisticRegressionCV(
        Cs=_STRENGTHS,
        cv=inner,
        scoring="neg_log_loss",
        max_iter=_MAX_STEPS,
        l1_ratios=(0.0,),
        use_legacy_attributes=False,
    )
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    scoring = {"auroc": "roc_auc_ovr", "accuracy": "accuracy"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # more steps change no printed digit
        scores: Mapping[str, NDArray[np.float64]] = cross_validate(
            regression, scaled, label.classes, cv=folds, scoring=scoring, error_score="raise"
        )
    return Probe(float(scores["test_auroc"].mean()), float(scores["test_accuracy"].mean()))


def _label(name: str, column: pl.DataFrame) -> tuple[Label | None, list[str]]:
    """The label in `column` (row, value), None with fewer than two classes, and notes on what is left out."""
    notes = []
    numbers = _as_numbers(column["value"])
    if numbers is not None and numbers.n_unique() > NUMBERS_MAX:
        cuts = np.unique(np.quantile(numbers.to_numpy(), np.arange(1, QUANTILES) / QUANTILES))
        values = pl.Series(np.searchsorted(cuts, numbers.to_numpy(), side="left")).cast(pl.String)
        cut_text = ", ".join(f"{cut:g}" for cut in cuts)
        notes.append(f"{name}: numbers, cut into {len(cuts) + 1} classes after {cut_text}")
    else:
        values = column["value"].cast(pl.String)
    counts = values.value_counts().sort("count", values.name or "", descending=[True, False])
    kept = counts.filter(pl.col("count") >= USERS_PER_CLASS)[values.name].head(CLASSES_MAX).sort()
    dropped = len(counts) - len(kept)
    if len(kept) < 2:
        return None, [f"{name}: left out, fewer than two values have {USERS_PER_CLASS} users"]
    is_kept = values.is_in(kept.implode()).to_numpy()
    if dropped:
        notes.append(
            f"{name}: {dropped} of {len(counts)} values left out, with {int((~is_kept).sum()):,} users; "
            f"a value needs {USERS_PER_CLASS} users, and at most the {CLASSES_MAX} most frequent values are kept"
        )
    classes = np.searchsorted(kept.to_numpy(), values.filter(is_kept).to_numpy())
    return Label(name, column["row"].to_numpy()[is_kept].astype(np.intp), classes.astype(np.intp)), notes


def _as_numbers(values: pl.Series) -> pl.Series | None:
    """The values as float64; None unless all are numbers."""
    if values.dtype.is_numeric():
        return values.cast(pl.Float64)
    numbers = values.cast(pl.Float64, strict=False) if values.dtype == pl.String else None
    return None if numbers is None or numbers.null_count() else numbers
