"""Scores items by how likely each is in the user's next visit: repeats and new items on one scale.

A small network, learned on validation visits, combines what the user had before (`server.core.own_items`), the
personal score, the popularity in the user's segment and in the whole population, and how often people repeat the item.
Its candidates are the user's own items and the best by personal score, segment and popularity. Training and serving
use this module alike.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from server.core.frozen_model import FrozenModel
from server.core.own_items import OWN_FEATURES, USER_FEATURES, OwnItems

POOL = 100
"""Candidates by personal score, by segment and by popularity, of each."""

RECENT_POOL = 50
"""Candidates by popularity of the last days."""

ITEM_STATISTICS = ("popularity_7_days", "popularity_30_days", "repeat_share", "repeat_rate")
"""Columns of `items.parquet` for the ranking, float32: log-probabilities with these half-lives; the log share of users
who had the item again in a later visit; and the log rate of repeats a later visit."""

FEATURES = (*OWN_FEATURES, "popularity", *ITEM_STATISTICS, "personal", "segment", *USER_FEATURES)
_OWN = slice(0, len(OWN_FEATURES))
_ITEM = slice(_OWN.stop, _OWN.stop + 1 + len(ITEM_STATISTICS))
_PERSONAL, _SEGMENT = _ITEM.stop, _ITEM.stop + 1
_USER = slice(_SEGMENT + 1, len(FEATURES))


class NextVisitModel(FrozenModel):
    """`ranking.json`: M networks of the same size, whose outputs are averaged; ReLU between the layers.

    `weights` and `biases` have one entry a layer: (M, inputs, outputs) and (M, outputs). The first layer reads
    `FEATURES`; the output is the log-odds that the item is in the next visit.
    """

    features: tuple[str, ...]
    weights: tuple[list[list[list[float]]], ...] = Field(min_length=1)
    biases: tuple[list[list[float]], ...]

    @model_validator(mode="after")
    def _fits(self) -> "NextVisitModel":
        if self.features != FEATURES:
            raise ValueError("ranking.json was learned from other features than this version computes")
        size = len(FEATURES)
        for weight, bias in zip(self.arrays[0], self.arrays[1], strict=True):
            if weight.ndim != 3 or weight.shape[1] != size or bias.shape != (len(weight), weight.shape[2]):
                raise ValueError("the layers of ranking.json do not fit together")
            size = weight.shape[2]
        if size != 1:
            raise ValueError("the last layer of ranking.json must have one output")
        return self

    @cached_property
    def arrays(self) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        """Weights and biases as arrays."""
        return [np.array(one, np.float32) for one in self.weights], [np.array(one, np.float32) for one in self.biases]

    def log_odds(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """The log-odds (R,) of R rows of `FEATURES`."""
        values: NDArray[np.float32] = features[None]
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(*self.arrays, strict=True)):
            values = values @ weight + bias[:, None]
            if layer < last:
                np.maximum(values, 0.0, out=values)
        mean: NDArray[np.float32] = values[:, :, 0].mean(axis=0)
        return mean


@dataclass(frozen=True)
class SegmentList:
    """The items of a segment, best first: `rows` (M,) and their log-probabilities `scores` (M,)."""

    rows: NDArray[np.intp]
    scores: NDArray[np.float32]

    @cached_property
    def by_row(self) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Rows and scores, by row."""
        order = np.argsort(self.rows, kind="stable")
        return self.rows[order], self.scores[order]


NO_SEGMENT = SegmentList(np.empty(0, np.intp), np.empty(0, np.float32))


@dataclass(frozen=True, slots=True)
class AverageItem:
    """Averages over items, weighted by popularity: the log-probability `popularity`, the `embedding` (D,), and the
    statistics of repeats `repeats` (2,). It is an item of an average event.
    """

    popularity: float
    embedding: NDArray[np.float64]
    repeats: NDArray[np.float32]


@dataclass(frozen=True)
class ItemTables:
    """What the ranking reads of V items: `embeddings` (V, D), `popularity` (V,) as log-probability, and `statistics`
    (V, `ITEM_STATISTICS`).
    """

    embeddings: NDArray[np.float32]
    popularity: NDArray[np.float32]
    statistics: NDArray[np.float32]

    @cached_property
    def popular(self) -> NDArray[np.intp]:
        """The candidates by popularity, over all time and of the last days, ascending."""
        best = [np.argsort(-self.popularity, kind="stable")[:POOL]]
        best += [np.argsort(-self.statistics[:, place], kind="stable")[:RECENT_POOL] for place in range(2)]
        return np.unique(np.concatenate(best))

    @cached_property
    def average(self) -> AverageItem:
        """The item to which scores are compared; see `server.core.ranking.reasons`."""
        share = np.exp(self.popularity.astype(np.float64))
        share /= share.sum()
        repeats = (share @ self.statistics[:, -2:]).astype(np.float32)
        return AverageItem(float(share @ self.popularity), share @ self.embeddings, repeats)

    @cached_property
    def item_features(self) -> NDArray[np.float32]:
        """Popularity and statistics of each item, (V, 1 + `ITEM_STATISTICS`)."""
        return np.column_stack([self.popularity, self.statistics]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Person:
    """User number `row` of some `OwnItems`: the part of the embedding that ranks items (D,), the item rows with the
    highest personal scores (`POOL`,), and the list of the segment.
    """

    row: int
    embedding: NDArray[np.float32]
    pool: NDArray[np.integer]
    segment: SegmentList


def candidate_rows(tables: ItemTables, own: OwnItems, person: Person) -> NDArray[np.intp]:
    """The item rows (R,) to score for a person, ascending."""
    return np.unique(
        np.concatenate([own.items_of(person.row), person.pool, person.segment.rows[:POOL], tables.popular])
    )


def features_of(tables: ItemTables, own: OwnItems, person: Person, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """The `FEATURES` of item rows (R,) for a person, (R, F)."""
    features = np.empty((len(rows), len(FEATURES)), np.float32)
    features[:, _OWN] = own.features_of(person.row, rows)
    features[:, _ITEM] = tables.item_features[rows]
    best = tables.embeddings[person.pool] @ person.embedding
    top = best.max(initial=-1e9)
    # Relative to the pool, a score is close to the log-probability under the encoder's softmax over all items.
    features[:, _PERSONAL] = tables.embeddings[rows] @ person.embedding - top - np.log(np.exp(best - top).sum() + 1e-9)
    features[:, _SEGMENT] = segment_scores(person.segment, tables.popularity, rows)
    features[:, _USER] = own.users[person.row]
    return features


def segment_scores(
    segment: SegmentList, popularity: NDArray[np.float32], rows: NDArray[np.integer]
) -> NDArray[np.float32]:
    """The log-probability of item rows (R,) in a segment.

    An item outside of the list has its popularity, but at most the score of the last listed item.
    """
    scores: NDArray[np.float32] = popularity[rows].copy()
    if len(segment.rows):
        np.minimum(scores, segment.scores[-1], out=scores)
        listed_rows, listed_scores = segment.by_row
        place = np.minimum(np.searchsorted(listed_rows, rows), len(listed_rows) - 1)
        listed = listed_rows[place] == rows
        scores[listed] = listed_scores[place[listed]]
    return scores
