"""Labels of segments, and one sentence on each: plain words that say what the figures of the profiles say, no more."""

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence

from server.core.profiles import SegmentProfile, Trait
from training.profiles.traits import MOST, SMALLEST_LIFT

LONGEST_NAME = 40
"""Characters of a title or category in a sentence."""

_SMALLEST_GROWTH = 0.1
_JOINERS = "\u200c\u200d"
"""Characters that nobody sees, and that some scripts need inside words."""


def labels_of(traits: Sequence[Sequence[Trait]]) -> list[str]:
    """A name for each segment in plain words, no two the same: its two strongest categories.

    Where there are no categories it is named by items, and then by what its users do.
    """
    parts = [_label_parts(own) for own in traits]
    labels = [" · ".join(own[:2]) or "All-round" for own in parts]
    for count in range(3, max((len(own) for own in parts), default=0) + 1):
        taken = Counter(labels)
        labels = [
            " · ".join(own[:count]) if taken[label] > 1 and len(own) >= count else label
            for label, own in zip(labels, parts, strict=True)
        ]
    taken, seen = Counter(labels), Counter[str]()
    numbered = []
    for label in labels:
        seen[label] += 1
        numbered.append(label if taken[label] == 1 else f"{label} ({seen[label]})")
    return numbered


def describe(profiles: Sequence[SegmentProfile]) -> list[str]:
    """One sentence on each segment of a release, no two the same, made of the profiles' own figures.

    What it says of weekends and of how much users do is beside all users, reckoned from the profiles together.
    """
    sentences = [_sentence(profile, profiles) for profile in profiles]
    taken = Counter(sentences)
    return [
        f"Segment {profile.segment_id}: {sentence}" if taken[sentence] > 1 else sentence
        for profile, sentence in zip(profiles, sentences, strict=True)
    ]


def in_words(name: str) -> str:
    """A category or title as people would write it: no shouting, no surplus spaces, nothing that cannot be seen."""
    seen = "".join(letter if letter.isprintable() or letter in _JOINERS else " " for letter in name)
    text = " ".join(seen.split())
    return text.capitalize() if text.isupper() else text


def label_percent(share: float) -> str:
    """A share in whole per cent, never 0 for something nor 100 for less than everything."""
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def times(ratio: float) -> str:
    """How many times, in as many digits as are worth telling."""
    if ratio < 0.1:
        return "less than 0.1 times"
    return f"{ratio:.1f} times" if ratio < 10 else f"{ratio:.0f} times"


def _sentence(profile: SegmentProfile, profiles: Sequence[SegmentProfile]) -> str:
    if profile.share == 1:
        return "All users in one segment; there is no other to differ from."
    told = [part for part in (_what(profile), _when(profile, profiles), _how_much(profile, profiles)) if part]
    told += [part for part in [_growth(profile)] if part]
    parts = told or ["nothing sets them apart from all users"]
    return "; ".join([f"{label_percent(profile.share).capitalize()} of users", *parts]) + "."


def _what(profile: SegmentProfile) -> str:
    """Its strongest categories; items where it has none, and actions where it has neither."""
    own: list[tuple[str, Trait]] = []
    for kind in ("category", "item", "action"):
        own = own or _named(profile.traits, kind)[:2]
    if not own:
        return ""
    (name, first), *others = own
    text = f"{label_percent(first.share)} of their events are {name}, {times(first.lift)} the share among all users"
    return text + "".join(f", and {label_percent(trait.share)} {name}, {times(trait.lift)}" for name, trait in others)


def _when(profile: SegmentProfile, profiles: Sequence[SegmentProfile]) -> str:
    """The days, and the part of the day, that sets it apart."""
    said = []
    everyone = _event_mean(profiles, _weekend)
    own = _weekend(profile)
    if everyone and own is not None and own >= SMALLEST_LIFT * everyone:
        said.append("mostly on weekends" if own > 0.5 else "more on weekends than others")
    for name, trait in _named(profile.traits, "time")[:1]:
        said.append(f"mostly at {name}" if trait.share > 0.5 else f"more at {name} than others")
    text = ", ".join(said)
    return text if not text or "UTC" in text else f"{text} (UTC)"


def _how_much(profile: SegmentProfile, profiles: Sequence[SegmentProfile]) -> str:
    known = [one for one in profiles if one.activity and one.user_count]
    users = sum(one.user_count for one in known)
    events = sum(one.user_count * one.activity.mean_events for one in known if one.activity)
    if not profile.activity or not events:
        return ""
    ratio = profile.activity.mean_events * users / events
    return f"{times(ratio)} the events of the average user" if not 1 / SMALLEST_LIFT < ratio < SMALLEST_LIFT else ""


def _growth(profile: SegmentProfile) -> str:
    if profile.growth is None or abs(profile.growth) < _SMALLEST_GROWTH:
        return ""
    how = "larger" if profile.growth > 0 else "smaller"
    return f"their share of the active users lately {label_percent(abs(profile.growth))} {how} than before"


def _named(traits: Sequence[Trait], kind: str) -> list[tuple[str, Trait]]:
    """The traits of one kind that have a name to print, by that name; of those that read the same, the first."""
    found: dict[str, Trait] = {}
    for trait in traits:
        if trait.kind == kind and (name := textwrap.shorten(in_words(trait.name), LONGEST_NAME, placeholder="…")):
            found.setdefault(name, trait)
    return list(found.items())


def _weekend(profile: SegmentProfile) -> float | None:
    return sum(profile.weekdays[5:]) if len(profile.weekdays) == 7 else None


def _event_mean(profiles: Sequence[SegmentProfile], figure: Callable[[SegmentProfile], float | None]) -> float | None:
    """Mean of a share over all events of the profiles that tell it; None where there are none."""
    told = [
        (one.user_count * one.activity.mean_events, value)
        for one in profiles
        if one.activity and (value := figure(one)) is not None
    ]
    weight = sum(events for events, _ in told)
    return sum(events * value for events, value in told) / weight if weight else None


def _label_parts(traits: Sequence[Trait]) -> list[str]:
    """Names to build a label from, the best first; names that say the same are taken once."""
    by_kind = {kind: [in_words(trait.name) for trait in traits if trait.kind == kind] for kind in MOST}
    first = by_kind["category"] or by_kind["item"]
    return [name for name in dict.fromkeys([*first, *by_kind["action"]]) if name]
