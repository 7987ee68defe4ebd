"""The sentences of a segment's card, and of the trust in all segments."""

from collections.abc import Mapping, Sequence

from humanize import natural_list

from training.reports.segments.content import Card
from training.reports.segments.people import Label, Story
from training.reports.wording import figure, percent
from training.segments.trust import Verdict

USES: Mapping[Verdict, str] = {
    "steady": "can be planned with: another training finds the same group, and half of a user's history is mostly "
    "enough to place the user",
    "loose": "describe a tendency: good for a picture of the users, too vague to promise anything about a single one",
    "noise": "may be chance: another training, or other events of the same users, would draw them differently; do not "
    "act on them",
}


def verdicts_of(cards: Sequence[Card]) -> dict[Verdict, list[int]]:
    """The ids of the segments of each verdict, ascending."""
    found: dict[Verdict, list[int]] = {word: [] for word in USES}
    for card in cards:
        if card.trust and card.trust.verdict:
            found[card.trust.verdict].append(card.profile.segment_id)
    return {word: sorted(ids) for word, ids in found.items() if ids}


def trust_sentences(cards: Sequence[Card]) -> list[str]:
    """What the trust in the segments means for their use; empty if it is unknown."""
    sentences = []
    for word, ids in verdicts_of(cards).items():
        whose = f"{'Segment' if len(ids) == 1 else 'Segments'} {natural_list(ids)}"
        verb = "is" if len(ids) == 1 else "are"
        use = USES[word] if len(ids) > 1 else _of_one(USES[word])
        sentences.append(f"{whose} {verb} {word}: {'it' if len(ids) == 1 else 'they'} {use}.")
    return sentences


def _of_one(use: str) -> str:
    pairs = (("describe a", "describes a"), ("draw them", "draw it"), ("act on them", "act on it"))
    for several, one in pairs:
        use = use.replace(several, one)
    return use


def trust_in_words(card: Card) -> str:
    """How far a segment can be relied on, with both figures; empty if they are unknown."""
    trust = card.trust
    if not trust or not trust.verdict:
        return ""
    parts = []
    if trust.reproduced is not None:
        parts.append(f"trainings on other users find {percent(trust.reproduced)} of it again")
    if trust.halves is not None:
        parts.append(f"two halves of a history agree on it by {max(trust.halves, 0):.2f} (0 chance, 1 always)")
    return "; ".join(parts) + "."


def labels_in_words(labels: Sequence[Label]) -> list[tuple[str, str]]:
    """Each label as its name and its figures."""
    return [
        (f"{_column_name(label.column)}: {label.value}", f"{percent(label.share)} · {label.lift:.1f}×")
        for label in labels
    ]


def _column_name(column: str) -> str:
    text = column.replace("_", " ")
    return text[:1].upper() + text[1:]


def typical_in_words(story: Story | None) -> str:
    """What the most typical users of a segment have in common."""
    return f"The {story.users} most typical users: {_common(story)}" if story else ""


def border_in_words(story: Story | None, names: Mapping[int, str]) -> str:
    """What the users at a segment's border have in common, and where most of them could go."""
    if not story:
        return ""
    near = f", mostly near “{names[story.next_segment]}”" if story.next_segment in names else ""
    return f"The {story.users} users at its border{near}: {_common(story)}"


def _common(story: Story) -> str:
    items = natural_list([f"{title} ({users})" for title, users in story.items])
    common = f"many chose {items}." if items else "no item that many of them chose."
    return f"median {figure(story.median_events)} events; {common}"
