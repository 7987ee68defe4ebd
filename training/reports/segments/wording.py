"""The sentences of a run's report, texts of its charts for screen readers included."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from humanize import natural_list

from server.core.figures import HYBRID, NEXT_VISIT, PERSONAL, POPULAR, SEGMENT
from server.core.profiles import Change, Flow, Migration, SegmentProfile
from training.ranking.item_lists import LONGEST_LIST
from training.reports.segments.content import MAP_USERS, Card, Content, Moves, Quality, display_name
from training.reports.segments.sweep_charts import Sweep
from training.reports.wording import percent, segments_in_words
from training.segments.result import Segmentation

_STRATEGIES = {
    HYBRID: "as served (hybrid)",
    PERSONAL: "personal items only",
    SEGMENT: "items of the segment only",
    POPULAR: "popular items only",
}

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def summary(content: Content) -> str:
    """Two sentences: the number of segments, and the largest segment."""
    segment_count = len(content.segmentation.profiles)
    cutoff = content.segmentation.data_cutoff_time
    until = f" up to {cutoff:%-d %B %Y}" if cutoff else ""
    verb = "form one segment" if segment_count == 1 else f"form {segment_count:,} segments"
    first = f"{content.user_count:,} users {verb} by their behaviour{until}."
    if not content.cards:
        return f"{first} All segments have fewer than {content.min_segment_size} users, so none is shown."
    largest = content.cards[0].profile
    second = f"The largest, “{display_name(largest)}”, has {percent(largest.share)} of all users."
    return f"{first} {second}"


def origin_in_words(content: Content) -> str:
    """Which files and which time the log is from, and when a release of the run must be forgotten."""
    trained_on, until = content.origin.trained_on, content.origin.forget_after
    first, last = trained_on.first_event_time, trained_on.last_event_time
    times = f" Their events are from {first:%-d %B %Y} to {last:%-d %B %Y}." if first and last else ""
    forget = f" A release of this run must be forgotten on {until:%-d %B %Y}." if until else ""
    files = natural_list(list(trained_on.files))
    return f"The log was read from {files}; {trained_on.user_count:,} users are left.{times}{forget}"


def not_shown(content: Content) -> str:
    """Why segments are left out; empty if all are shown."""
    left_out = len(content.segmentation.profiles) - len(content.cards)
    small = any(profile.user_count < content.min_segment_size for profile in content.segmentation.profiles)
    if not left_out:
        return ""
    if small:
        return f"Segments of fewer than {content.min_segment_size} users are not shown, to protect their users."
    return f"The {len(content.cards)} largest of {len(content.segmentation.profiles):,} segments are shown."


def map_in_words(content: Content) -> str:
    """How to read the map."""
    shown, all_users = len(content.user_map.points), content.user_map.user_count
    subject = f"A sample of {shown:,} of {all_users:,} users" if shown == MAP_USERS else f"{shown:,} users"
    explained = percent(sum(content.user_map.explained))
    return (
        f"{subject}, one mark each; users with similar behaviour are near each other. The two axes (principal "
        f"components) hold {explained} of the differences between users, so segments that overlap here can be apart in "
        "other directions. Each number is in the middle of its segment; each segment has its own colour and shape."
    )


def overlap_in_words(segmentation: Segmentation) -> str:
    """How much the lists of items of two segments overlap; empty with fewer than two lists."""
    top, particular = segmentation.top_items_overlap, segmentation.particular_items_overlap
    if not top:
        return ""
    first = (
        f"What everybody chooses is in many lists: of the {LONGEST_LIST} items that most users of a segment chose, two "
        f"segments have {percent(top.mean)} in common on average, and {percent(top.largest)} at most."
    )
    if not particular:
        return first
    shares = f"{percent(particular.mean)} and {percent(particular.largest)}"
    return f"{first} Of the items that they are particular about, by the lower bound of the lift, it is {shares}."


def sizes_in_words(content: Content) -> str:
    """The chart of sizes in words."""
    bars = [f"{card.name}: {card.profile.user_count:,} users" for card in content.cards]
    return f"Bars of users by segment. {'; '.join(bars)}."


def sweep_in_words(sweep: Sweep) -> str:
    """The chart of the sweep over k in words; its figures follow in a table."""
    names = natural_list([measure.title for measure in sweep.measures()])
    return f"Lines over k from {sweep.rows[0][0]} to {sweep.rows[-1][0]}, {sweep.chosen} marked as chosen: {names}."


def quality_in_words(quality: Quality) -> str:
    """The best and the worst segment of the chart of quality; its figures follow in a table."""
    if not quality.slices:
        return ""
    best = max(quality.slices, key=lambda segment: segment.ndcg)
    worst = min(quality.slices, key=lambda segment: segment.ndcg)
    return (
        f"Next items are predicted best in “{best.name}” (NDCG@10 {best.ndcg:.3f}) and worst in “{worst.name}” "
        f"({worst.ndcg:.3f}); {quality.overall.ndcg:.3f} over all users."
    )


def curves_in_words(content: Content) -> str:
    """The first and the last loss, and the best validation NDCG@10 with its epoch."""
    curves = content.curves
    epochs = "epoch" if len(curves) == 1 else "epochs"
    loss = f"The loss went from {curves[0]['loss']:.3f} to {curves[-1]['loss']:.3f} in {len(curves)} {epochs}."
    scored = [(point["ndcg@10"], int(point["epoch"]) + 1) for point in curves if "ndcg@10" in point]
    if not scored:
        return loss
    best, epoch = max(scored)
    return f"{loss} NDCG@10 on validation was best after epoch {epoch}, with {best:.4f}; the run keeps these weights."


def moves_in_words(content: Content, moves: Moves) -> Iterator[str]:
    """Sentences on what happened to the segments of the release before."""
    migration = moves.migration
    before = {profile.segment_id: display_name(profile) for profile in moves.previous}
    now = {card.profile.segment_id: card.name for card in content.cards}
    if not before:
        yield f"Release {migration.previous_release} is not in the repository, so its segments have numbers only."
    if migration.user_count:
        stayed = sum(flow.user_count for flow in migration.flows if flow.from_segment_id == flow.to_segment_id)
        known, share = f"{migration.user_count:,} users known to both releases", percent(stayed / migration.user_count)
        yield f"Of {known}, at least {share} are in the same segment as before."
    yield from list(_changes(migration, before, now)) or ["No segment is new, gone, split or merged."]


def _changes(migration: Migration, before: Mapping[int, str], now: Mapping[int, str]) -> Iterator[str]:
    """Sentences on new, gone, split and merged segments that are large enough to be shown."""
    yield from (f"“{now[number]}” is new." for number in migration.born_segment_ids if number in now)
    for number in migration.retired_segment_ids:
        if number in before or not before:
            yield _gone(number, before, now, migration.flows)
    yield from (f"{_split(change)}." for change in migration.splits)
    yield from (f"{_merge(change)}." for change in migration.merges)


def _gone(number: int, before: Mapping[int, str], now: Mapping[int, str], flows: Sequence[Flow]) -> str:
    name = f"“{before[number]}”" if number in before else f"Segment {number}"
    heirs = [flow for flow in flows if flow.from_segment_id == number]
    if not heirs:
        return f"{name} is gone."
    largest = max(heirs, key=lambda flow: flow.user_count)
    target = f"“{now[largest.to_segment_id]}”" if largest.to_segment_id in now else f"segment {largest.to_segment_id}"
    return f"{name} is gone; {percent(largest.share)} of its users are in {target} now."


def _split(change: Change) -> str:
    source = segments_in_words(change.from_segment_ids).capitalize()
    return f"{source} split into {segments_in_words(change.to_segment_ids)}"


def _merge(change: Change) -> str:
    sources = segments_in_words(change.from_segment_ids).capitalize()
    return f"{sources} merged into {segments_in_words(change.to_segment_ids)}"


def weeks_in_words(card: Card) -> str:
    """The chart of users by week in words."""
    told = [week for week in card.people.weeks if week.users is not None]
    most = max(told, key=lambda week: week.users or 0)
    return (
        f"Users of “{card.name}” with an event in each week from {told[0].start:%-d %B %Y} ({told[0].users:,}) to "
        f"{told[-1].start:%-d %B %Y} ({told[-1].users:,}); most in the week of {most.start:%-d %B %Y} ({most.users:,})."
    )


def headline(quality: Quality) -> tuple[str, str]:
    """The first figure of quality, and what it means, up to the end of the sentence."""
    who = "the release" if quality.overall.method == HYBRID else "the model"
    what = (
        f"at their next visit at least one of the ten items that {who} recommends to them"
        if quality.protocol == NEXT_VISIT
        else f"next one of the ten items that {who} recommends to them"
    )
    popular = f"; of the ten most popular items, {percent(quality.popular.hr)}" if quality.popular else ""
    return percent(quality.overall.hr), f"of users chose {what}{popular}."


def method_in_words(method: str) -> str:
    """A method of the table of quality."""
    return _STRATEGIES.get(method, method)


def rhythm_in_words(profile: SegmentProfile, zone: str) -> str:
    """A segment's busiest hour and day."""
    parts = []
    if profile.hours:
        hour = int(np.argmax(profile.hours))
        parts.append(f"{hour}–{hour + 1} h {zone} ({percent(profile.hours[hour])} of events)")
    if profile.weekdays:
        day = int(np.argmax(profile.weekdays))
        parts.append(f"{WEEKDAYS[day]} ({percent(profile.weekdays[day])})")
    return f"Busiest: {', '.join(parts)}." if parts else ""


def flows_in_words(moves: Moves) -> Iterator[str]:
    """The flow chart in words."""
    yield f"Bands of users from the segments of release {moves.migration.previous_release} to the new segments."
    for flow in sorted(moves.migration.flows, key=lambda flow: -flow.user_count):
        start = f"segment {flow.from_segment_id}" if flow.from_segment_id else "elsewhere"
        yield f"{flow.user_count:,} from {start} to segment {flow.to_segment_id}."
