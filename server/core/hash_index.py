"""Looks up the indexes of item ids and actions for whole columns of events, by their 64-bit hashes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from server.core.history import text_hash


def hashes_of(names: Sequence[str]) -> NDArray[np.uint64]:
    """The `text_hash` of each name, (n,)."""
    return np.array([text_hash(name) for name in names], np.uint64)


@dataclass(frozen=True, slots=True)
class HashIndex:
    """`text_hash` of a name → index of the name, from 1. `hashes` uint64 (V,) ascend; `indexes` int32 (V,)."""

    hashes: NDArray[np.uint64]
    indexes: NDArray[np.int32]

    @classmethod
    def of(cls, names: Sequence[str]) -> Self:
        """Index distinct names; the first name has index 1. Raises `ValueError` when two names have the same hash."""
        return cls.of_hashes(hashes_of(names))

    @classmethod
    def of_hashes(cls, hashes: NDArray[np.uint64]) -> Self:
        """Index distinct names by their `hashes_of`; see `of`."""
        order = np.argsort(hashes)
        ascending = hashes[order]
        if (ascending[1:] == ascending[:-1]).any():
            raise ValueError("two names are equal or have the same 64-bit hash: rename one of them")
        return cls(ascending, (order + 1).astype(np.int32))

    def find(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Index of each hash, (n,); 0 for an unknown name."""
        if not len(self.hashes):
            return np.zeros(len(hashes), np.int32)
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[places] == hashes, self.indexes[places], np.int32(0))
