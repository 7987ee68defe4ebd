"""Some of the events of users: those that are wanted of a log, such as two halves of each history."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.features import Features, encode
from server.core.preprocessing import Preprocessing, ValueNormaliser
from training.data.sequences import EventLog


@dataclass(frozen=True, slots=True)
class EventSubset:
    """Some events of each of U users; `timestamp` (N,) goes with the columns of `features`. Users may have none."""

    features: Features
    timestamp: NDArray[np.int64]

    @property
    def users(self) -> NDArray[np.int64]:
        """The user row of each event, (N,)."""
        return np.repeat(np.arange(len(self.features.lengths)), self.features.lengths)


def part_of(
    log: EventLog, kept: NDArray[np.bool_], rows: NDArray[np.intp], preprocessing: Preprocessing
) -> EventSubset:
    """The events `kept` (N,) of the users `rows` (U,), ascending; gaps are those between the events that are left."""
    wanted = np.zeros(len(log.features.lengths), np.bool_)
    wanted[rows] = True
    user = np.repeat(np.arange(len(wanted)), log.features.lengths)
    places = np.flatnonzero(kept & wanted[user])
    row = np.searchsorted(rows, user[places])
    columns = log.features
    events = {
        "row": row,
        "item_index": columns.item_index[places],
        "action_index": columns.action_index[places],
        "value": columns.value[places],
        "timestamp": (timestamp := log.timestamp[places]),
    }
    scaled_already = preprocessing.model_copy(update={"value": ValueNormaliser()})
    encoded = encode(pl.LazyFrame(events), scaled_already).collect()
    features = Features(
        encoded["item_index"].to_numpy(),
        encoded["action_index"].to_numpy(),
        encoded["value"].to_numpy(),
        encoded["gap_index"].to_numpy(),
        np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(rows)))]),
        np.zeros(len(rows), np.int32),
    )
    return EventSubset(features, timestamp)


def random_half(log: EventLog, seed: int) -> NDArray[np.bool_]:
    """Whether each event is in the first of two halves of its user's events, drawn at random, (N,).

    Of an odd number of events the second half has one more.
    """
    lengths = log.features.lengths
    user = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((np.random.default_rng(seed).random(len(user)), user))
    place = np.arange(len(user)) - log.features.offsets[user]
    one = np.zeros(len(user), np.bool_)
    one[order] = place < lengths[user] // 2
    return one
