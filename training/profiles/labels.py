"""Segment labels, and a one-sentence description per segment, built from the figures of the profiles only."""

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from server.core.profiles import SegmentProfile, Trait
from training.profiles.traits import MOST_TRAITS, SMALLEST_LIFT

LONGEST_NAME = 40
"""Maximum characters of a title or category in a description."""

LABEL_SHARE, LABEL_USERS = 0.02, 0.1
"""Least share of the events and of the users of a segment, of a trait in its label and description; items: of users."""

_SMALLEST_GROWTH = 0.1
_JOINERS = "\u200c\u200d"
"""Invisible characters that some scripts need inside words."""


def labels_of(traits: Sequence[Sequence[Trait]], user_counts: Sequence[int]) -> list[str]:
    """A unique label for each segment, of up to two names of what its users do more often than others.

    Names are categories; of a segment without any, items; without these, actions. `names_it` says which are large
    enough. A name leads the label of the segment that it sets apart most, so that labels begin differently, and no two
    labels hold the same names in another order. `user_counts` are the users of each segment.
    """
    named = [_label_names(own, users) for own, users in zip(traits, user_counts, strict=True)]
    ordered = [list(dict.fromkeys([lead, *names])) for lead, names in zip(_leads(named), named, strict=True)]
    names_of_labels: list[list[str]] = []
    for names in ordered:
        names_of_labels.append(_unused_names([name for name in names if name], names_of_labels))
    labels = [" · ".join(names) or "All-round" for names in names_of_labels]
    uses, numbers = Counter(labels), Counter[str]()
    numbered = []
    for label in labels:
        numbers[label] += 1
        numbered.append(label if uses[label] == 1 else f"{label} ({numbers[label]})")
    return numbered


def names_it(trait: Trait, user_count: int) -> bool:
    """Whether a trait is large enough to name or to describe a segment of `user_count` users.

    A share of 1 % of the events can be 2.4 times that of all users, and yet hardly anybody in the segment has it.
    """
    has_share = trait.kind == "item" or trait.share >= LABEL_SHARE
    return has_share and (not trait.user_count or trait.user_count >= LABEL_USERS * user_count)


def _leads(named: Sequence[Mapping[str, float]]) -> list[str]:
    """The first name of each label: names go, the strongest first, to one segment each; empty without names."""
    leads: dict[int, str] = {}
    claims = [(-strength, segment, name) for segment, names in enumerate(named) for name, strength in names.items()]
    for _, segment, name in sorted(claims):
        if segment not in leads and name not in leads.values():
            leads[segment] = name
    return [leads.get(segment, next(iter(names), "")) for segment, names in enumerate(named)]


def _unused_names(names: Sequence[str], used: Sequence[Sequence[str]]) -> list[str]:
    """The first name and one to three more that no other label has; the first name alone if others have them all."""
    taken = {frozenset(label) for label in used}
    choices = ([*names[:1], *others] for count in (1, 2, 3) for others in combinations(names[1:], count))
    return next((choice for choice in choices if frozenset(choice) not in taken), list(names[:1]))


def descriptions_of(profiles: Sequence[SegmentProfile], zone: str = "UTC") -> list[str]:
    """A unique one-sentence description of each segment of a release, from the figures of the profiles.

    Weekends and the number of events are compared with all users, whose figures are computed from all profiles. The
    weekdays of the profiles are of the time `zone`.
    """
    sentences = [_sentence(profile, profiles, zone) for profile in profiles]
    uses = Counter(sentences)
    return [
        f"Segment {profile.segment_id}: {sentence}" if uses[sentence] > 1 else sentence
        for profile, sentence in zip(profiles, sentences, strict=True)
    ]


def display_name(name: str) -> str:
    """A category or title for display: not all upper case, no repeated spaces, no invisible characters."""
    visible = "".join(letter if letter.isprintable() or letter in _JOINERS else " " for letter in name)
    text = " ".join(visible.split())
    return text.capitalize() if text.isupper() else text


def percent_text(share: float) -> str:
    """A share in whole per cent; `under 1 %` and `over 99 %` keep small shares from 0 % and large ones from 100 %."""
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def times_text(ratio: float) -> str:
    """A ratio such as `1.5 times`, with one decimal below 10."""
    if ratio < 0.1:
        return "less than 0.1 times"
    return f"{ratio:.1f} times" if ratio < 10 else f"{ratio:.0f} times"


def _sentence(profile: SegmentProfile, profiles: Sequence[SegmentProfile], zone: str) -> str:
    if profile.share == 1:
        return "All users in one segment; there is no other to differ from."
    clauses = (
        _what_clause(profile),
        _when_clause(profile, profiles, zone),
        _amount_clause(profile, profiles),
        _growth_clause(profile),
    )
    little = "little" if profile.traits else "nothing"
    differences = [clause for clause in clauses if clause] or [f"{little} sets them apart from all users"]
    return "; ".join([f"{percent_text(profile.share).capitalize()} of users", *differences]) + "."


def _what_clause(profile: SegmentProfile) -> str:
    """The strongest two categories; else items; else actions."""
    named_traits: list[tuple[str, Trait]] = []
    for kind in ("category", "item", "action"):
        large = [trait for trait in profile.traits if names_it(trait, profile.user_count)]
        named_traits = named_traits or _named(large, kind)[:2]
    if not named_traits:
        return ""
    (name, first), *others = named_traits
    text = f"{percent_text(first.share)} of their events are {name}, {times_text(first.lift)} the share among all users"
    return text + "".join(
        f", and {percent_text(trait.share)} {name}, {times_text(trait.lift)}" for name, trait in others
    )


def _when_clause(profile: SegmentProfile, profiles: Sequence[SegmentProfile], zone: str) -> str:
    """Weekends and the part of the day, if the segment differs from all users there."""
    clauses = []
    everyone = _event_mean(profiles, _weekend)
    weekend = _weekend(profile)
    if everyone and weekend is not None and weekend >= SMALLEST_LIFT * everyone:
        clauses.append("mostly on weekends" if weekend > 0.5 else "more on weekends than others")
    times = _named(profile.traits, "time")[:1]
    if clauses and not times:  # the part of the day names the zone itself
        clauses = [f"{clauses[0]} ({zone})"]
    clauses += [f"mostly at {name}" if trait.share > 0.5 else f"more at {name} than others" for name, trait in times]
    return ", ".join(clauses)


def _amount_clause(profile: SegmentProfile, profiles: Sequence[SegmentProfile]) -> str:
    active = [other for other in profiles if other.activity and other.user_count]
    users = sum(other.user_count for other in active)
    events = sum(other.user_count * other.activity.mean_events for other in active if other.activity)
    if not profile.activity or not events:
        return ""
    ratio = profile.activity.mean_events * users / events
    return (
        f"{times_text(ratio)} the events of the average user" if not 1 / SMALLEST_LIFT < ratio < SMALLEST_LIFT else ""
    )


def _growth_clause(profile: SegmentProfile) -> str:
    if profile.growth is None or abs(profile.growth) < _SMALLEST_GROWTH:
        return ""
    direction = "larger" if profile.growth > 0 else "smaller"
    return f"their share of the active users is lately {percent_text(abs(profile.growth))} {direction} than before"


def _named(traits: Sequence[Trait], kind: str) -> list[tuple[str, Trait]]:
    """The traits of one kind with their display names; of equal names the first, and none without a visible name."""
    by_name: dict[str, Trait] = {}
    for trait in traits:
        if trait.kind == kind and (name := textwrap.shorten(display_name(trait.name), LONGEST_NAME, placeholder="…")):
            by_name.setdefault(name, trait)
    return list(by_name.items())


def _weekend(profile: SegmentProfile) -> float | None:
    return sum(profile.weekdays[5:]) if len(profile.weekdays) == 7 else None


def _event_mean(profiles: Sequence[SegmentProfile], figure: Callable[[SegmentProfile], float | None]) -> float | None:
    """Mean of a share over all events of the profiles that have the figure; None if no profile has it."""
    weighted = [
        (profile.user_count * profile.activity.mean_events, value)
        for profile in profiles
        if profile.activity and (value := figure(profile)) is not None
    ]
    weight = sum(events for events, _ in weighted)
    return sum(events * value for events, value in weighted) / weight if weight else None


def _label_names(traits: Sequence[Trait], user_count: int) -> dict[str, float]:
    """Distinct names for a label, the best first, with their strength: how much they set the segment apart."""
    strengths: dict[str, dict[str, float]] = {kind: {} for kind in MOST_TRAITS}
    for trait in traits:
        if (name := display_name(trait.name)) and names_it(trait, user_count):
            low = max(trait.lift_low, 1.0) if trait.lift_low else trait.lift
            strengths[trait.kind].setdefault(name, trait.share * (low - 1) ** 2 / low)
    main_names = strengths["category"] or strengths["item"]
    return main_names | {name: 0.0 for name in strengths["action"] if name not in main_names}
