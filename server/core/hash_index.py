"""Looks up the indexes of item ids and actions for whole columns of events, by their 64-bit hashes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from server.core.history import text_hash

_SPARE_BITS = 4
"""16 to 32 times as many buckets as names: 3 % of known hashes are behind another of their bucket."""

_FEW = 256


def hashes_of(names: Sequence[str]) -> NDArray[np.uint64]:
    """The `text_hash` of each name, (n,)."""
    return np.array([text_hash(name) for name in names], np.uint64)


@dataclass(frozen=True)
class HashIndex:
    """`text_hash` of a name → index of the name, from 1. `hashes` uint64 (V,) ascend; `indexes` int32 (V,).

    With aliases, `names` has the hash of each name by its index; else it is None.
    """

    hashes: NDArray[np.uint64]
    indexes: NDArray[np.int32]
    names: NDArray[np.uint64] | None = None

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

    @classmethod
    def with_aliases(cls, names: Sequence[str], aliases: Mapping[str, str]) -> Self:
        """Index distinct names, which `aliases` leads to from other names. Raises `ValueError` as `of` does."""
        plain = cls.of([*names, *aliases])
        if not aliases:
            return plain
        places = {name: place for place, name in enumerate(names, 1)}
        index_of = np.array([*places.values(), *(places[name] for name in aliases.values())], np.int32)
        return cls(plain.hashes, index_of[plain.indexes - 1], hashes_of(names))

    def without_aliases(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The hashes (n,) with those of aliases replaced by those of their names."""
        if self.names is None:
            return hashes
        indexes = self.find(hashes)
        return np.where(indexes > 0, self.names[indexes - 1], hashes)

    def find(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Index of each hash, (n,); 0 for an unknown name."""
        if len(hashes) < _FEW:
            return self._search(hashes)
        directory = self._directory
        places = directory.starts[hashes >> directory.shift]
        found = np.where(directory.hashes[places] == hashes, directory.indexes[places], np.int32(0))
        missed = np.flatnonzero(found == 0)
        if len(missed):
            found[missed] = self._search(hashes[missed])
        return found

    def warm(self) -> None:
        """Prepare now what the first call of `find` would prepare."""
        _ = self._directory

    def _search(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """`find` by halving, which is quicker for few hashes."""
        if not len(self.hashes):
            return np.zeros(len(hashes), np.int32)
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[places] == hashes, self.indexes[places], np.int32(0))

    @cached_property
    def _directory(self) -> "_Directory":
        bits = len(self.hashes).bit_length() + _SPARE_BITS
        shift = np.uint64(64 - bits)
        starts = np.searchsorted(self.hashes >> shift, np.arange(1 << bits, dtype=np.uint64)).astype(np.int32)
        # One more place, for buckets behind the last hash: index 0 is that of an unknown name.
        return _Directory(shift, starts, np.append(self.hashes, np.uint64(0)), np.append(self.indexes, np.int32(0)))


@dataclass(frozen=True, slots=True)
class _Directory:
    """The first place of the hashes with each top bits, so that nearly every known hash is found by one look.

    Hashes are uniform. `starts` int32 (2^bits,); `hashes` and `indexes` are those of the index, and one place more.
    """

    shift: np.uint64
    starts: NDArray[np.int32]
    hashes: NDArray[np.uint64]
    indexes: NDArray[np.int32]
