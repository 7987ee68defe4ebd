"""Exact Shapley values of the ranking of the next visit (Shapley 1953; Lundberg & Lee, NeurIPS 2017).

A score is the log-probability of an item. The value of a group of features is how much the score rises when they get
the item's values instead of those of the average item, averaged over all orders in which the groups can get them. Some
features hold others: the popularity in the segment and that of the last days hold the popularity. They are split, so
that the segment and the trend only have what differs from the popularity.
"""

from functools import cache
from itertools import combinations
from math import factorial

import numpy as np
from numpy.typing import NDArray

from server.core.next_visit import FEATURES, AverageItem, NextVisitModel
from server.core.own_items import NEVER, OWN_FEATURES

_GROUPS = 5
_ROWS_AT_ONCE = 256
"""Rows whose coalitions fit the CPU's cache."""
_ONE_ROUND = 50

_OWN = np.arange(len(OWN_FEATURES))
_HAD = FEATURES.index("own")
_POPULARITY, _DAYS_7, _DAYS_30 = (
    FEATURES.index(name) for name in ("popularity", "popularity_7_days", "popularity_30_days")
)
_REPEATS = [FEATURES.index(name) for name in ("repeat_share", "repeat_rate")]
_PERSONAL, _SEGMENT = FEATURES.index("personal"), FEATURES.index("segment")
_LEVELS = [_POPULARITY, _DAYS_7, _DAYS_30, _SEGMENT]
"""Features that hold the popularity."""

_COLUMNS = (_OWN, [_PERSONAL], [_SEGMENT], [*_LEVELS, *_REPEATS], [_DAYS_7, _DAYS_30])
"""The features that each group moves, in the order of `server.core.ranking.query.Part`."""


def next_visit_parts(
    model: NextVisitModel, average: AverageItem, features: NDArray[np.float32], encoder: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Base (N,), parts (N, G) and which parts are there (N, G), of the scores of rows of `FEATURES` (N, F).

    `encoder` (N,) is the personal score of each row less that of the average item.
    """
    base, values = np.empty(len(features)), np.zeros((len(features), _GROUPS))
    moves = _moves(average, features, encoder)
    is_there = np.column_stack([np.any(move != 0, axis=1) for move in moves])
    is_there[:, 0] = features[:, _HAD] > 0
    # For an item that the user never had, half of the coalitions do; for few items one round is quicker than two.
    has_own = is_there[:, 0] | (len(features) <= _ONE_ROUND)
    for with_own in (False, True):
        places = np.flatnonzero(has_own == with_own)
        groups = range(0 if with_own else 1, _GROUPS)
        for start in range(0, len(places), _ROWS_AT_ONCE):
            part = places[start : start + _ROWS_AT_ONCE]
            scores = _coalition_scores(model, features[part], [moves[group][part] for group in groups], groups)
            base[part] = scores[0]
            values[part, groups.start :] = (_weights(len(groups)) @ scores).T
    return base, np.where(is_there, values, 0.0), is_there


def _moves(
    average: AverageItem, features: NDArray[np.float32], encoder: NDArray[np.float64]
) -> list[NDArray[np.float32]]:
    """How each group moves the features in its `_COLUMNS`, from the average item to the row's."""
    popularity = features[:, _POPULARITY]
    above = popularity - np.float32(average.popularity)
    repeats = features[:, _REPEATS] - average.repeats
    return [
        features[:, _OWN] - NEVER,
        encoder.astype(np.float32)[:, None],
        (features[:, _SEGMENT] - popularity)[:, None],
        np.column_stack([above, above, above, above, repeats]),
        features[:, [_DAYS_7, _DAYS_30]] - popularity[:, None],
    ]


def _coalition_scores(
    model: NextVisitModel, features: NDArray[np.float32], moves: list[NDArray[np.float32]], groups: range
) -> NDArray[np.float64]:
    """The score (C, N) of each coalition of groups; the bits of its number tell which groups have moved."""
    (first, *weights), (bias, *biases) = model.arrays
    inputs = [np.ascontiguousarray(first[:, _COLUMNS[group]]) for group in groups]
    steps = [move @ weight for move, weight in zip(moves, inputs, strict=True)]
    values = features @ first + bias[:, None] - sum(steps)  # (M, C * N, outputs), at first of one coalition
    for step in steps:
        moved = values.reshape(len(first), -1, *step.shape[1:]) + step[:, None]
        values = np.concatenate([values, moved.reshape(values.shape)], axis=1)
    for weight, bias in zip(weights, biases, strict=True):
        values = np.maximum(values, 0.0, out=values) @ weight + bias[:, None]
    log_odds = values[..., 0].mean(axis=0).astype(np.float64).reshape(-1, len(features))
    scores: NDArray[np.float64] = -np.logaddexp(0.0, -log_odds)
    return scores


@cache
def _weights(count: int) -> NDArray[np.float64]:
    """The weight of each coalition's score in the value of each of `count` groups, (count, 2 ** count)."""
    weights = np.zeros((count, 2**count))
    for group in range(count):
        others = [other for other in range(count) if other != group]
        for size in range(count):
            share = factorial(size) * factorial(count - size - 1) / factorial(count)
            for members in combinations(others, size):
                without = sum(1 << member for member in members)
                weights[group, without] -= share
                weights[group, without | 1 << group] += share
    return weights
