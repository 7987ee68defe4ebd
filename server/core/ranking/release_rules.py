"""Operators' rules as arrays of one release: which items each segment's rules raise, lower, leave out, pin and cap."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.core.ranking.caps import Cap
from server.core.release import Release
from server.core.rules import Rule

_NOTHING = np.empty(0, np.intp)


class Pin(NamedTuple):
    """The item `row` stands at `place`, from 1."""

    place: int
    row: int
    rule_id: str


class Replacement(NamedTuple):
    """The item `new_row` stands where the item `row` would."""

    row: int
    new_row: int
    rule_id: str


class Adjusted(NamedTuple):
    """Rows (R,) with their scores (R,), and how much rules have raised each score, `lift` (R,), in nats.

    `places` (R,) are those that the rows had before, as rules add none and leave some out.
    """

    rows: NDArray[np.intp]
    scores: NDArray[np.float64]
    lift: NDArray[np.float64]
    places: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class SegmentRules:
    """The rules for the users of one segment, over the V items of a release.

    `banned` rows ascend. `boosted` rows (M,) ascend and have the `amounts` (M,), in nats.
    """

    item_count: int
    banned: NDArray[np.intp]
    boosted: NDArray[np.intp]
    amounts: NDArray[np.float64]
    pins: tuple[Pin, ...]
    replacements: tuple[Replacement, ...]
    caps: tuple[Cap, ...]
    rules_of_rows: dict[int, tuple[str, ...]]
    """Ids of the rules that boost or bury a row."""

    @cached_property
    def classes(self) -> tuple[NDArray[np.bool_], ...]:
        """Masks (V,) of items whose order by score the rules keep: the raised, the lowered and the others, if any.

        The best of each class are the candidates for a list, so that no rule is lost to a search for the best scores.
        """
        classes = np.zeros(self.item_count, np.int8)
        classes[self.boosted] = np.where(self.amounts > 0, 1, 2)
        classes[[one.new_row for one in self.replacements]] = 1
        classes[[pin.row for pin in self.pins]] = 1
        masks = (classes == number for number in range(3))
        return tuple(mask for mask in masks if mask.any())

    def adjusted(self, rows: NDArray[np.intp], scores: NDArray[np.floating]) -> Adjusted:
        """The distinct rows (R,) without those that are replaced, with the scores that the rules give them."""
        before = scores.astype(np.float64)
        after = before + self._boost_of(rows)
        places = np.arange(len(rows))
        if self.replacements:
            keep = np.ones(len(rows), bool)
            place_of = {row: place for place, row in enumerate(rows.tolist())}
            for one in self.replacements:
                old, new = place_of.get(one.row), place_of.get(one.new_row)
                if old is None:
                    continue
                keep[old] = False
                if new is not None:
                    after[new] = max(after[new], after[old])
            places = np.flatnonzero(keep)
        return Adjusted(rows[places], after[places], (after - before)[places], places)

    def _boost_of(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        boost = np.zeros(len(rows))
        if len(self.boosted):
            place = np.minimum(np.searchsorted(self.boosted, rows), len(self.boosted) - 1)
            is_boosted = self.boosted[place] == rows
            boost[is_boosted] = self.amounts[place[is_boosted]]
        return boost

    def rule_ids(self, row: int, lift: float, is_pinned: bool) -> tuple[str, ...]:
        """The rules that have moved the item `row`, whose score they have raised by `lift`."""
        ids = self.rules_of_rows.get(row, ())
        if lift:
            ids += tuple(one.rule_id for one in self.replacements if one.new_row == row)
        return ids + tuple(pin.rule_id for pin in self.pins if is_pinned and pin.row == row)

    @cached_property
    def place_of(self) -> dict[int, int]:
        """Place, from 1, of each pinned row."""
        return {pin.row: pin.place for pin in self.pins}


class ReleaseRules:
    """The rules that hold now, for one release. Items, categories and sellers that it does not know are ignored."""

    def __init__(self, release: Release, rules: Sequence[Rule]) -> None:
        self._release = release
        self._rules = rules
        self._named_segments = {segment_id for rule in rules for segment_id in rule.segment_ids}
        self._by_segment: dict[int, SegmentRules | None] = {}

    def for_segment(self, segment_id: int) -> SegmentRules | None:
        """The rules for the users of a segment, 0 for users without one; None without any."""
        key = segment_id if segment_id in self._named_segments else 0
        if key not in self._by_segment:
            rules = [rule for rule in self._rules if not rule.segment_ids or key in rule.segment_ids]
            self._by_segment[key] = segment_rules(self._release, rules) if rules else None
        return self._by_segment[key]


def rules_of(release: Release) -> ReleaseRules | None:
    """The rules in force for a release; None without any."""
    in_force = release.rules
    if not in_force.valid:
        return None
    compiled = in_force.compiled
    if release.number not in compiled:
        compiled[release.number] = ReleaseRules(release, in_force.valid)
    found: ReleaseRules = compiled[release.number]
    return found


def action_weights(release: Release) -> NDArray[np.float32]:
    """The weight of each action index (A + 1,), those of the rules in force in place of the release's."""
    given = release.rules.rules.action_weights
    if not given:
        return release.action_weights
    weights = release.action_weights.copy()
    for index, action in enumerate(release.preprocessing.actions, 1):
        weights[index] = given.get(action.name, weights[index])
    return weights


def segment_rules(release: Release, rules: Iterable[Rule]) -> SegmentRules:
    """Compile rules for a release."""
    boost: dict[int, float] = {}
    names: dict[int, tuple[str, ...]] = {}
    banned: list[NDArray[np.intp]] = [_NOTHING]
    pins, replacements, caps = [], [], []
    for rule in rules:
        rows = rows_of_rule(release, rule)
        if rule.kind in ("boost", "bury") and rule.factor:
            amount = math.log(rule.factor) * (1 if rule.kind == "boost" else -1)
            for row in rows.tolist():
                boost[row] = boost.get(row, 0.0) + amount
                names[row] = (*names.get(row, ()), rule.rule_id)
        elif rule.kind == "ban":
            banned.append(rows)
        elif rule.kind == "pin" and rule.place and len(rows):
            pins.append(Pin(rule.place, int(rows[0]), rule.rule_id))
        elif rule.kind == "replace":
            new = release.vocabulary.get(rule.replacement_item_id or "", 0)
            if not new:
                banned.append(rows)
            elif len(rows):
                replacements.append(Replacement(int(rows[0]), new - 1, rule.rule_id))
        elif rule.kind == "cap" and rule.max_items:
            caps.append(Cap(rule.max_items, _cap_groups(release, rule, rows)))
    boosted = np.array(sorted(boost), np.intp)
    return SegmentRules(
        len(release.item_ids),
        np.unique(np.concatenate(banned)),
        boosted,
        np.array([boost[row] for row in boosted.tolist()]),
        tuple(sorted(pins)),
        tuple(replacements),
        tuple(caps),
        names,
    )


def rows_of_rule(release: Release, rule: Rule) -> NDArray[np.intp]:
    """Rows of the items that a rule names, ascending."""
    known = (release.vocabulary.get(item_id, 0) for item_id in rule.item_ids)
    found = [np.array([index - 1 for index in known if index], np.intp)]
    found += [release.category_rows.get(category, _NOTHING) for category in rule.categories]
    found += [release.seller_rows.get(seller, _NOTHING) for seller in rule.sellers]
    return np.unique(np.concatenate(found))


def _cap_groups(release: Release, rule: Rule, rows: NDArray[np.intp]) -> dict[int, tuple[int, ...]]:
    """Row → the groups of which the cap lets only so many into a list."""
    if rule.per is None:
        return dict.fromkeys(rows.tolist(), (0,))
    is_named = bool(rule.item_ids or rule.categories or rule.sellers)
    wanted = set(rows.tolist())
    groups: dict[int, tuple[int, ...]] = {}
    tables = release.category_rows if rule.per == "category" else release.seller_rows
    for number, members in enumerate(tables.values()):
        for row in members.tolist():
            if not is_named or row in wanted:
                groups[row] = (*groups.get(row, ()), number)
    return groups
