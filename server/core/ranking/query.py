"""What is asked of the ranking and what it answers: queries, users, and ranked items with their reasons."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.core.own_items import PastEvents
from server.core.ranking.filters import ItemFilters


class Strategy(Enum):
    """How items are chosen; see the API's `Strategy`."""

    HYBRID = auto()
    PERSONAL = auto()
    SEGMENT = auto()
    POPULAR = auto()


class Part(Enum):
    """A part of a score, in the order of the columns of `Parts`; see the API's `ScorePart`."""

    OWN_HISTORY = 0
    ENCODER = 1
    SEGMENT = 2
    POPULARITY = 3
    TREND = 4
    RULE = 5


@dataclass(frozen=True, slots=True)
class Query:
    """What to recommend. `exclude_seen` None means the default of the release; `diversity` is 0 to 1.

    Without `include_variants` the best item of a group stands for all its items. With `explain` scores are explained.
    """

    top_k: int = 10
    strategy: Strategy = Strategy.HYBRID
    exclude_seen: bool | None = None
    exclude_item_ids: tuple[str, ...] = ()
    exclude_categories: tuple[str, ...] = ()
    include_categories: tuple[str, ...] = ()
    candidate_item_ids: tuple[str, ...] = ()
    diversity: float = 0.0
    include_variants: bool = False
    explain: bool = False

    @property
    def filters(self) -> ItemFilters:
        return ItemFilters(
            self.exclude_item_ids, self.exclude_categories, self.include_categories, self.candidate_item_ids
        )


@dataclass(frozen=True, slots=True)
class Subject:
    """The user: embedding (D,) and segment id (None and 0 if unknown), and the events of the history."""

    embedding: NDArray[np.float32] | None
    segment_id: int
    past: PastEvents


class HistoryItem(NamedTuple):
    """An item of the user's history, `row` is the item index - 1, with the number of its events there, from 1, and what
    it adds to a score, in nats; see `server.core.ranking.contributions`.
    """

    row: int
    event_count: int
    value: float


class Explanation(NamedTuple):
    """A score as `base` + the sum of `parts`; see `server.core.ranking.reasons`. `history_items` change it most."""

    base: float
    parts: dict[Part, float]
    history_items: tuple[HistoryItem, ...] = ()


class Ranked(NamedTuple):
    """A recommended item with score, and the part that raised it most. `row` is the item index - 1.

    The reason of an item that a rule has put at its place is `RULE`; `rule_ids` are the rules that have moved it.
    """

    row: int
    score: float
    reason: Part
    seen: bool
    explanation: Explanation | None = None
    rule_ids: tuple[str, ...] = ()


class Ranking(NamedTuple):
    """The items for one user, best first but for those that rules pin, the strategy that chose them, and how many items
    filters and rules left out.
    """

    items: list[Ranked]
    strategy: Strategy
    removed_count: int
