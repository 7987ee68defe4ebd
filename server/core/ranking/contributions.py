"""How much each item of a user's own history adds to the scores of recommended items.

The events of one item are left out of the history, and the parts of the same scores are computed again from the rest:
from its embedding, its segment and what the user had before. How much their sum falls is what the item adds (erasure:
Li, Monroe & Jurafsky, arXiv:1612.08220). The sum is the score less its base, so that a constant of the user, which some
scores have, does not count. Items of a history can stand in for each other: what they add does not sum to the score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.core.features import look_up
from server.core.histories import Histories
from server.core.history import History
from server.core.ranking.query import HistoryItem, Part, Ranked, Ranking, Strategy, Subject
from server.core.ranking.reasons import parts_of
from server.core.ranking.strategies import scored_rows
from server.core.release import Release

MOST_LEFT_OUT = 20
"""Items of a history that are left out in turn: with the whole history, one batch of the encoder."""
MOST_SEEN = 10
"""How many of them may be there because they are recommended; the others are the newest that the encoder reads."""
MOST_NAMED = 3
"""Items that are named for each recommended one."""
NOISE = 1e-5
"""Changes up to this size, in nats, are from the rounding of float32."""

_OF_HISTORY = [Part.ENCODER.value, Part.SEGMENT.value]
_OWN = Part.OWN_HISTORY.value


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The item `rows` (C,) that are left out of a history, the number of events with each (C,), and C + 1 `histories`:
    the whole one, then one without each item. They have the numbers of the events, but no texts.
    """

    rows: NDArray[np.intp]
    event_counts: list[int]
    histories: list[History]


def reads_history(strategy: Strategy) -> bool:
    """Whether the scores of a strategy depend on the events of a user, and not on the segment at most."""
    return strategy in (Strategy.HYBRID, Strategy.PERSONAL)


def left_out(release: Release, history: History, ranking: Ranking) -> LeftOut:
    """Leave out the recommended items that are in the history, then the newest that the encoder reads."""
    read = look_up(Histories.of([history]), release.item_index, release.action_index, release.preprocessing)
    seen = [item.row for item in ranking.items if item.seen][:MOST_SEEN]
    rows = list(dict.fromkeys([*seen, *(read.item_index[::-1] - 1).tolist()]))[:MOST_LEFT_OUT]
    row_of_event = release.item_index.find(history.item_hashes) - 1
    has_item = [row_of_event == row for row in rows]
    histories = [_numbers_of(history, ~events) for events in (np.zeros(len(history), bool), *has_item)]
    return LeftOut(np.array(rows, np.intp), [int(events.sum()) for events in has_item], histories)


def _numbers_of(history: History, kept: NDArray[np.bool_]) -> History:
    """The events that are `kept` (n,), without the texts of items and actions, which nothing here reads."""
    columns = (history.timestamps, history.values, history.item_hashes, history.action_hashes, history.keys)
    texts = [""] * int(kept.sum())
    return History.of(texts, texts, [column[kept] for column in columns], history.revision, history.origin)


def with_history_items(release: Release, ranking: Ranking, left: LeftOut, subjects: Sequence[Subject]) -> Ranking:
    """The explained ranking, with the items of the history that change each score most.

    `subjects` are the user with each history of `left`; with the whole one the user has an embedding.
    """
    recommended = np.array([item.row for item in ranking.items], np.intp)
    added = _added(release, ranking.strategy, left.rows, recommended, subjects)
    items = [_explained(item, left, column) for item, column in zip(ranking.items, added.T, strict=True)]
    return ranking._replace(items=items)


def _explained(item: Ranked, left: LeftOut, added: NDArray[np.float64]) -> Ranked:
    """The item with those left-out items that have `added` (C,) most to its score."""
    assert item.explanation is not None
    largest = [place for place in np.argsort(-abs(added), kind="stable")[:MOST_NAMED] if abs(added[place]) > NOISE]
    named = tuple(HistoryItem(int(left.rows[one]), left.event_counts[one], float(added[one])) for one in largest)
    return item._replace(explanation=item.explanation._replace(history_items=named))


def _added(
    release: Release,
    strategy: Strategy,
    rows: NDArray[np.intp],
    recommended: NDArray[np.intp],
    subjects: Sequence[Subject],
) -> NDArray[np.float64]:
    """What each left-out item (C,) adds to each recommended one (R,): (C, R), in nats."""
    is_known = np.array([subject.embedding is not None for subject in subjects])
    known = [subject for subject in subjects if subject.embedding is not None]
    parts = parts_of(release, known, scored_rows(release, strategy, known, recommended))
    values = parts.values.reshape(len(known), len(recommended), -1)
    # Without any event that the encoder reads, all that rests on the history is gone.
    added = np.tile(values[0][:, _OF_HISTORY].sum(axis=1), (len(rows), 1))
    added += np.where(rows[:, None] == recommended, values[0][:, _OWN], 0.0)
    sums = values.sum(axis=2)
    added[is_known[1:]] = sums[0] - sums[1:]
    return added
