import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.visits import canonical_order, visit_starts

NAN = float("nan")


def test_a_visit_ends_after_a_longer_gap_and_with_its_history() -> None:
    rows = np.array([0, 0, 0, 0, 1, 1])
    timestamps = np.array([0, 1_500, 3_000, 4_501, 4_501, 4_501])
    assert visit_starts(rows, timestamps, 1.5).tolist() == [True, False, False, True, True, False]
    assert visit_starts(rows, timestamps, 0.0).tolist() == [True, True, True, True, True, False]
    assert visit_starts(rows[:0], timestamps[:0], 0.0).tolist() == []


def test_events_without_ties_need_no_order() -> None:
    hashes, values = np.array([9, 8, 7], np.uint64), np.zeros(3)
    assert canonical_order(np.array([0, 0, 1]), np.array([1, 2, 3]), hashes, hashes, values) is None


tied_event = st.tuples(
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from([0, 1, 2**63, 2**63 + 1, 2**64 - 1]),
    st.sampled_from([3, 2**64 - 2]),
    st.sampled_from([-1.0, 0.5, NAN]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(tied_event, min_size=1, max_size=40))
def test_ties_are_sorted_by_item_then_action_then_value(events: list[tuple[int, int, int, int, float]]) -> None:
    events.sort(key=lambda event: event[:2])
    rows, timestamps, item_hashes, action_hashes, values = zip(*events, strict=True)
    hashes = np.array(item_hashes, np.uint64), np.array(action_hashes, np.uint64)
    order = canonical_order(np.array(rows), np.array(timestamps), *hashes, np.array(values))
    expected = sorted(events, key=lambda event: (*event[:4], event[4] != event[4], np.nan_to_num(event[4])))
    found = events if order is None else [events[place] for place in order.tolist()]
    assert list(map(str, found)) == list(map(str, expected))
