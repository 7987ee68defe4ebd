"""Learns the ranking of the next visit (`server.core.next_visit`) from validation visits.

The rows are the candidates of each user with a validation visit, with the features that the server computes, from the
events before that visit; a row is positive if the visit has its item. Small networks minimise the mean cross-entropy,
so that their averaged output is calibrated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from server.core.next_visit import (
    FEATURES,
    ITEM_STATISTICS,
    POOL,
    ItemTables,
    NextVisitModel,
    Person,
    SegmentList,
    candidate_rows,
    features_of,
)
from server.core.own_items import Behaviour, OwnItems, PastEvents, own_items
from server.core.preprocessing import Preprocessing
from server.core.ragged import offsets_of, places_of, rows_of
from server.core.visits import visit_starts
from training.data.sequences import EventLog
from training.model.user_encoder import BAG_HISTORY
from training.ranking.segment_items import behaviour_of, popularity

VISITS_MIN = 200
"""Validation visits below which no ranking is learned."""

VISITS_MAX = 4_000
"""Validation visits that the ranking is learned from."""

STATISTICS_USERS = 50_000

_MEMBERS, _HIDDEN = 3, (32, 16)
_EPOCHS, _RATE, _DECAY = 10, 6e-3, 1e-2
_STEPS_AN_EPOCH, _SMALLEST_BATCH = 140, 256
_ROWS_AT_ONCE = 8192
_OWN_SHARE, _NEW_SHARE = 0.5, 0.25
"""Shares of the candidates outside of the visit that are learned from; their weights make up for the others."""


@dataclass(frozen=True, slots=True)
class Asked:
    """B users at the moment before a visit: `rows` (B,) in the log, what they had, the parts of their embeddings that
    rank items (B, D), their best rows by personal score (B, `POOL`), and the list of each user's segment.
    """

    rows: NDArray[np.intp]
    own: OwnItems
    embeddings: NDArray[np.float32]
    pools: NDArray[np.int64]
    segments: list[SegmentList]

    def person(self, place: int) -> Person:
        """One of the users."""
        return Person(place, self.embeddings[place], self.pools[place], self.segments[place])


@dataclass(frozen=True, slots=True)
class Rows:
    """R candidates: `user` (R,) as place in `Asked`, `item_row` (R,), `features` (R, `FEATURES`)."""

    user: NDArray[np.int64]
    item_row: NDArray[np.intp]
    features: NDArray[np.float32]

    @classmethod
    def of(cls, tables: ItemTables, asked: Asked) -> "Rows":
        """The candidates of every user."""
        people = [asked.person(place) for place in range(len(asked.rows))]
        lists = [candidate_rows(tables, asked.own, person) for person in people]
        features = np.empty((sum(map(len, lists)), len(FEATURES)), np.float32)
        offsets = offsets_of(np.array([len(rows) for rows in lists]))
        for person, rows in zip(people, lists, strict=True):
            features[offsets[person.row] : offsets[person.row + 1]] = features_of(tables, asked.own, person, rows)
        return cls(rows_of(np.diff(offsets)), np.concatenate(lists), features)

    def and_also(self, others: "Rows") -> "Rows":
        """These rows, then others."""
        columns = [np.concatenate([getattr(self, name), getattr(others, name)]) for name in self.__slots__]
        return Rows(*columns)

    def best(
        self, model: NextVisitModel, user_count: int, count: int, groups: NDArray[np.int32] | None = None
    ) -> NDArray[np.int64]:
        """The best `count` item rows of each user, best first, (B, count); -1 where there are fewer.

        Of each of the `groups` (V,) of variants there is the best.
        """
        scores = np.concatenate(
            [
                model.log_odds(self.features[start : start + _ROWS_AT_ONCE])
                for start in range(0, len(self.user), _ROWS_AT_ONCE)
            ]
        )
        order = np.lexsort((-scores, self.user))
        if groups is not None:
            key = self.user[order].astype(np.int64) * len(groups) + groups[self.item_row[order]]
            order = order[np.sort(np.unique(key, return_index=True)[1])]
        place = places_of(0, np.bincount(self.user[order], minlength=user_count))
        kept = place < count
        best = np.full((user_count, count), -1, np.int64)
        best[self.user[order][kept], place[kept]] = self.item_row[order][kept]
        return best


def past_of(log: EventLog, rows: NDArray[np.intp], ends: NDArray[np.int64], preprocessing: Preprocessing) -> Behaviour:
    """The newest events of users before `ends` (B,), as many as a server keeps."""
    starts = np.maximum(log.features.starts[rows], ends - BAG_HISTORY)
    lengths = ends - starts
    places, row = places_of(starts, lengths), rows_of(lengths)
    weights = np.array([0.0, *(action.weight for action in preprocessing.actions)], np.float32)
    time = log.timestamp[places]
    past = PastEvents(
        log.features.item_index[places].astype(np.int64) - 1,
        weights[log.features.action_index[places]],
        time,
        visit_starts(row, time, log.gap_seconds),
    )
    return Behaviour(row, past, len(rows), preprocessing.has_clock)


def item_statistics(
    log: EventLog, ends: NDArray[np.int64], preprocessing: Preprocessing, item_count: int
) -> NDArray[np.float32]:
    """The `ITEM_STATISTICS` of all items from each user's events before `ends` (U,), (V, `ITEM_STATISTICS`)."""
    behaviour = behaviour_of(log, ends, preprocessing, item_count)
    recent = [np.log(popularity(behaviour, half_life)) for half_life in (7.0, 30.0)]
    active = np.flatnonzero(ends > log.features.starts)
    sample = np.sort(np.random.default_rng(0).permutation(active)[:STATISTICS_USERS])
    own = own_items(past_of(log, sample, ends[sample], preprocessing), item_count)

    def summed(values: NDArray[np.generic]) -> NDArray[np.float64]:
        return np.bincount(own.item_row, values.astype(np.float64), item_count).astype(np.float64)

    repeat_share = (summed(own.visits > 1) + 1.0) / (summed(np.ones(len(own.row))) + 5.0)
    repeat_rate = (summed(own.visits - 1) + 0.5) / (summed(own.chances) + 20.0)
    columns = [*recent, np.log(repeat_share), np.log(repeat_rate)]
    assert len(columns) == len(ITEM_STATISTICS)
    return np.column_stack(columns).astype(np.float32)


def pools_of(embeddings: NDArray[np.float32], items: NDArray[np.float32]) -> NDArray[np.int64]:
    """The item rows with the highest personal scores for each embedding (B, D), (B, `POOL`), by the server's search."""
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(np.ascontiguousarray(items, np.float32))
    rows: NDArray[np.int64] = index.search(np.ascontiguousarray(embeddings), min(POOL, len(items)))[1]
    return rows


def learn(rows: Rows, positive: NDArray[np.bool_], seed: int) -> NextVisitModel:
    """Fit the networks to rows (R,) and whether each item is in the visit, (R,)."""
    share = np.where(rows.features[:, FEATURES.index("own")] > 0, _OWN_SHARE, _NEW_SHARE)
    share[positive] = 1.0
    kept = np.random.default_rng((seed, 1)).random(len(share)) < share
    features = torch.from_numpy(rows.features[kept])
    targets = torch.from_numpy(positive[kept].astype(np.float32))
    weights = torch.from_numpy((1.0 / share[kept]).astype(np.float32))
    mean, scale = features.mean(0), features.std(0) + 1e-6
    with torch.random.fork_rng(), _one_thread():
        torch.manual_seed(seed)
        networks = _Networks(len(FEATURES))
        _train(networks, (features - mean) / scale, targets, weights)
    return networks.model(mean, scale)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch: more gain nothing on small batches, and wait for each other for minutes on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Networks(nn.Module):
    """`_MEMBERS` networks at once: weights (M, inputs, outputs), biases (M, 1, outputs)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        sizes = [inputs, *_HIDDEN, 1]
        pairs = list(pairwise(sizes))
        self.weights = nn.ParameterList(torch.randn(_MEMBERS, *pair) * (2.0 / pair[0]) ** 0.5 for pair in pairs)
        self.biases = nn.ParameterList(torch.zeros(_MEMBERS, 1, pair[1]) for pair in pairs)

    def forward(self, features: Tensor) -> Tensor:
        """Log-odds (M, B) of rows (B, F)."""
        values = features.expand(_MEMBERS, *features.shape)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = torch.baddbmm(bias, values, weight)
            if layer < len(_HIDDEN):
                values = functional.relu(values)
        return values.squeeze(2)

    def model(self, mean: Tensor, scale: Tensor) -> NextVisitModel:
        """The networks for features that are not standardised."""
        weights = [weight.detach().clone() for weight in self.weights]
        biases = [bias.detach().clone() for bias in self.biases]
        weights[0] = weights[0] / scale[:, None]
        biases[0] = biases[0] - mean[None, None] @ weights[0]
        return NextVisitModel(
            features=FEATURES,
            weights=tuple(weight.tolist() for weight in weights),
            biases=tuple(bias.squeeze(1).tolist() for bias in biases),
        )


def _train(networks: _Networks, features: Tensor, targets: Tensor, weights: Tensor) -> None:
    """AdamW with one cycle of the rate."""
    optimizer = torch.optim.AdamW(networks.parameters(), lr=_RATE, weight_decay=_DECAY, fused=True)
    size = max(_SMALLEST_BATCH, len(features) // _STEPS_AN_EPOCH)
    steps = _EPOCHS * -(-len(features) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2 * _RATE, total_steps=steps)
    for _ in range(_EPOCHS):
        order = torch.randperm(len(features))
        shuffled = (torch.split(column[order], size) for column in (features, targets, weights))
        for batch, target, weight in zip(*shuffled, strict=True):
            log_odds = networks(batch)
            loss = functional.binary_cross_entropy_with_logits(
                log_odds, target.expand_as(log_odds), weight.expand_as(log_odds)
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
