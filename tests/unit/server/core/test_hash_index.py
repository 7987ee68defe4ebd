import numpy as np
import pytest

from server.core.hash_index import HashIndex
from server.core.history import text_hash


def test_names_are_found_and_others_are_not() -> None:
    names = [f"name-{number}" for number in range(1000)]
    asked = ["name-0", "unknown", "name-999", ""]
    hashes = np.array([text_hash(name) for name in asked], np.uint64)
    assert HashIndex.of(names).find(hashes).tolist() == [1, 0, 1000, 0]


def test_nothing_is_known_where_there_are_no_names() -> None:
    assert HashIndex.of([]).find(np.array([1, 2], np.uint64)).tolist() == [0, 0]


def test_names_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="same"):
        HashIndex.of(["a", "b", "a"])
