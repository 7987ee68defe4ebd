import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.hash_index import HashIndex, hashes_of
from server.core.history import text_hash


def test_known_names_have_their_index_and_unknown_names_have_0() -> None:
    names = [f"name-{number}" for number in range(1000)]
    asked = ["name-0", "unknown", "name-999", ""]
    hashes = np.array([text_hash(name) for name in asked], np.uint64)
    assert HashIndex.of(names).find(hashes).tolist() == [1, 0, 1000, 0]


@given(st.integers(0, 300), st.integers(0, 2**32), st.sampled_from([1, 2**20, 2**40]))
def test_many_names_are_found_as_few_are(name_count: int, seed: int, crowding: int) -> None:
    """`crowding`: how many times denser than uniform the hashes lie."""
    rng = np.random.default_rng(seed)
    hashes = np.unique(rng.integers(0, 2**64 // crowding, name_count, np.uint64))
    rng.shuffle(hashes)
    index = HashIndex.of_hashes(hashes)
    asked = np.concatenate([hashes, rng.integers(0, 2**64, 600, np.uint64), np.array([0, 2**64 - 1], np.uint64)])
    expected = {int(one): place for place, one in enumerate(hashes, 1)}
    assert index.find(asked).tolist() == [expected.get(int(one), 0) for one in asked]
    assert (
        np.concatenate([index.find(part) for part in np.array_split(asked, 9)]).tolist() == index.find(asked).tolist()
    )


def test_an_empty_index_knows_no_name() -> None:
    assert HashIndex.of([]).find(np.array([1, 2], np.uint64)).tolist() == [0, 0]


def test_names_with_equal_hashes_are_refused() -> None:
    with pytest.raises(ValueError, match="same"):
        HashIndex.of(["a", "b", "a"])


def test_aliases_lead_to_the_index_and_the_hash_of_their_name() -> None:
    index = HashIndex.with_aliases(["view", "buy"], {"bought": "buy", "look": "view"})
    hashes = hashes_of(["look", "buy", "bought", "other"])
    assert index.find(hashes).tolist() == [1, 2, 2, 0]
    assert index.without_aliases(hashes).tolist() == hashes_of(["view", "buy", "buy", "other"]).tolist()
    plain = HashIndex.with_aliases(["view"], {})
    assert plain.without_aliases(hashes) is hashes
    with pytest.raises(ValueError, match="same 64-bit hash"):
        HashIndex.with_aliases(["view", "buy"], {"view": "buy"})
