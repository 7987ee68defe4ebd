"""Operators' rules: what people say about items, beside what the models say.

A rule has one effect on the items that it names, for the users of its segments, while it is valid:

- boost, bury: the items' scores rise or fall by the logarithm of `factor`: as scores are log-probabilities, a boost by
  2 ranks an item as if it were twice as likely
- pin: the item stands at a place of the list
- replace: another item stands where the item would
- ban: the items are never shown
- cap: at most so many of the items are in a list, or so many of each category or seller

The filters of a call go before rules: no rule shows an item that its caller leaves out.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from server.core.frozen_model import FrozenModel

MAX_RULES = 1_000
MAX_TARGETS = 10_000
"""Items, categories and sellers in one rule."""
LARGEST_PLACE = 500

Text = Annotated[str, Field(min_length=1, max_length=512)]
Kind = Literal["boost", "bury", "pin", "replace", "ban", "cap"]


class Rule(FrozenModel, allow_inf_nan=False):
    """One rule. It is for items of `item_ids`, of `categories` or of `sellers`; a cap without any is for all items.

    `segment_ids` empty: for all users, also those without a segment. Valid from `start_time`, until before `end_time`.
    """

    rule_id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    kind: Kind
    item_ids: tuple[Text, ...] = ()
    categories: tuple[Text, ...] = ()
    sellers: tuple[Text, ...] = ()
    segment_ids: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), max_length=10_000)
    start_time: AwareDatetime | None = None
    end_time: AwareDatetime | None = None
    note: str = Field(default="", max_length=1_000)
    factor: float | None = Field(default=None, gt=1, le=1e6)
    place: int | None = Field(default=None, ge=1, le=LARGEST_PLACE)
    replacement_item_id: Text | None = None
    max_items: int | None = Field(default=None, ge=1, le=LARGEST_PLACE)
    per: Literal["category", "seller"] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        wanted = {"boost": "factor", "bury": "factor", "pin": "place", "replace": "replacement_item_id"}
        wanted["cap"] = "max_items"
        given = {name for name in set(wanted.values()) if getattr(self, name) is not None}
        needed = {wanted[self.kind]} if self.kind in wanted else set()
        if given != needed:
            raise ValueError(f"a {self.kind} needs {' and '.join(needed) or 'nothing more'}, and nothing else")
        if self.per and self.kind != "cap":
            raise ValueError("only a cap is per category or seller")
        if self.kind in ("pin", "replace") and (len(self.item_ids) != 1 or self.categories or self.sellers):
            raise ValueError(f"a {self.kind} is for one item")
        if self.replacement_item_id in self.item_ids:
            raise ValueError("an item cannot be replaced by itself")
        count = len(self.item_ids) + len(self.categories) + len(self.sellers)
        if not count and not self.per:
            raise ValueError("name the items, categories or sellers that the rule is for")
        if count > MAX_TARGETS:
            raise ValueError(f"a rule names at most {MAX_TARGETS:,} items, categories and sellers")
        if self.start_time and self.end_time and self.start_time >= self.end_time:
            raise ValueError("the rule ends before it starts")
        return self

    def is_valid_at(self, seconds: float) -> bool:
        """Whether the rule holds at this time, in seconds since 1970."""
        begun = self.start_time is None or self.start_time.timestamp() <= seconds
        return begun and (self.end_time is None or seconds < self.end_time.timestamp())

    def meets(self, other: "Rule") -> bool:
        """Whether both can hold for the same user at the same time."""
        if self.segment_ids and other.segment_ids and not set(self.segment_ids) & set(other.segment_ids):
            return False
        starts = [rule.start_time for rule in (self, other) if rule.start_time]
        ends = [rule.end_time for rule in (self, other) if rule.end_time]
        return not starts or not ends or max(starts) < min(ends)


class Rules(FrozenModel):
    """The rules of an installation. `action_weights` take the place of those that a release was trained with."""

    rules: tuple[Rule, ...] = Field(default=(), max_length=MAX_RULES)
    action_weights: dict[Text, Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(default_factory=dict, max_length=1_000)

    @model_validator(mode="after")
    def _do_not_contradict(self) -> Self:
        ids = [rule.rule_id for rule in self.rules]
        doubled = next((one for one in ids if ids.count(one) > 1), None)
        if doubled is not None:
            raise ValueError(f"two rules are called {doubled!r}")
        self._check_apart("pin", "place")
        self._check_apart("pin", "item_ids")
        self._check_apart("replace", "item_ids")
        return self

    def _check_apart(self, kind: Kind, what: Literal["place", "item_ids"]) -> None:
        rules = [rule for rule in self.rules if rule.kind == kind]
        for position, rule in enumerate(rules):
            for other in rules[:position]:
                if getattr(rule, what) == getattr(other, what) and rule.meets(other):
                    raise ValueError(
                        f"{other.rule_id!r} and {rule.rule_id!r} {kind} the same {what.removesuffix('_ids')} for the "
                        "same users at the same time"
                    )

    def valid_at(self, seconds: float) -> tuple[Rule, ...]:
        """The rules that hold at this time, in seconds since 1970."""
        return tuple(rule for rule in self.rules if rule.is_valid_at(seconds))

    def next_change(self, seconds: float) -> float:
        """When a rule begins or ends next after this time, in seconds since 1970; infinite for never."""
        times = [time.timestamp() for rule in self.rules for time in (rule.start_time, rule.end_time) if time]
        return min((time for time in times if time > seconds), default=float("inf"))


class RulesInForce:
    """The rules that hold now; a server's releases share one, whose `rules` and `valid` it replaces.

    `compiled` has what the ranking makes of them, by release number.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.valid = self.rules.rules
        self.compiled: dict[int, Any] = {}

    def put(self, rules: Rules, seconds: float) -> None:
        """Put rules in force, of which those hold that are valid at this time, in seconds since 1970."""
        valid = rules.valid_at(seconds)
        if (rules, valid) != (self.rules, self.valid):
            self.rules, self.valid, self.compiled = rules, valid, {}

    def forget_release(self, number: int) -> None:
        """Drop what was made for a release that is no longer loaded."""
        self.compiled.pop(number, None)
