"""Histories that nobody had: drawn with a fixed seed, to check an encoder without the history of a user."""

from collections.abc import Sequence

import numpy as np

from server.core.features import GAP_COUNT, Features
from server.core.preprocessing import Preprocessing
from server.core.ragged import offsets_of


def draw_histories(
    lengths: Sequence[int], preprocessing: Preprocessing, item_count: int, largest_value: float
) -> Features:
    """One history of each length in `lengths` (B,), in events, with uniformly drawn items, actions, values and gaps.

    Values are normalised ones, up to `largest_value` from 0 (the encoder cuts at 10). Equal arguments
    give equal histories; they depend on the sizes of a release, not on the events of its log.
    """
    rng = np.random.default_rng(0)
    count = sum(lengths)
    return Features(
        item_index=rng.integers(1, item_count + 1, count).astype(np.int32),
        action_index=rng.integers(1, len(preprocessing.actions) + 1, count).astype(np.int32),
        value=rng.uniform(-largest_value, largest_value, count).astype(np.float32),
        gap_index=rng.integers(1, GAP_COUNT, count).astype(np.int32),
        offsets=offsets_of(np.array(lengths, np.int64)),
        ignored=np.zeros(len(lengths), np.int32),
    )
