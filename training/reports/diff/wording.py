"""The sentences and tables of `segrec-train diff`."""

from collections.abc import Iterator
from typing import NamedTuple

from humanize import natural_list
from rich.console import Group, RenderableType
from rich.table import Table

from server.core.figures import ENCODER, HYBRID, PERSONAL, SEGMENT
from training.reports.diff.figures import Diff, QualityFigure
from training.reports.wording import count, percent, segments_in_words

LITTLE, MUCH = (0.05, 0.9), (0.3, 0.5)
"""Limits of the verdict: share of users in another segment, share of first items that stay."""

_METHODS = (HYBRID, ENCODER, PERSONAL, SEGMENT)
_METRICS = {"ndcg": "NDCG", "hr": "HR"}
_MOST_FLOWS = 15


class DiffRow(NamedTuple):
    """A row of the table, as texts: a figure's name, its value in each release if any, and its change."""

    name: str
    before: str
    after: str
    change: str


def verdict(diff: Diff) -> str:
    """One sentence: how much changes, and whether quality does."""
    parts = [
        f"{percent(diff.changed)} of users are in another segment",
        f"{percent(diff.items.overlap)} of a user’s first {diff.items.top_k} items stay",
    ]
    sentence = f"{_level(diff)} from release {diff.before} to release {diff.after}: {natural_list(parts)}"
    return f"{sentence}{_quality_part(diff)}."


def _level(diff: Diff) -> str:
    if diff.changed <= LITTLE[0] and diff.items.overlap >= LITTLE[1]:
        return "Little changes"
    return "Much changes" if diff.changed > MUCH[0] or diff.items.overlap < MUCH[1] else "Some things change"


def _quality_part(diff: Diff) -> str:
    common = [figure for figure in diff.quality if None not in figure.pair and figure.metric == "ndcg"]
    main = next((figure for method in (HYBRID, ENCODER) for figure in common if figure.method == method), None)
    if main is None:
        return "; their manifests have no main figure of quality in common"
    before, after = (f"{value:.4f}" for value in main.pair)
    if diff.same_test == "same":
        change = f"stays {after}" if before == after else f"goes from {before} to {after}"
        return f"; {quality_name(main)} {change} on the same test"
    users = "on other users" if diff.same_test == "different" else "perhaps on other users"
    return f"; {quality_name(main)} was {before} and is {after}, measured {users}"


def moves_in_words(diff: Diff) -> Iterator[str]:
    """Sentences on users who stay, and on splits, merges, new and retired segments."""
    migration = diff.migration
    yield f"{percent(1 - diff.changed, 1)} of users stay in their segment."
    yield from (
        f"{segments_in_words(split.from_segment_ids).capitalize()} splits into "
        f"{segments_in_words(split.to_segment_ids)}."
        for split in migration.splits
    )
    yield from (
        f"{segments_in_words(merge.from_segment_ids).capitalize()} merge into "
        f"{segments_in_words(merge.to_segment_ids)}."
        for merge in migration.merges
    )
    if migration.born_segment_ids:
        yield f"Only release {diff.after} has {segments_in_words(migration.born_segment_ids)}."
    if migration.retired_segment_ids:
        yield f"Only release {diff.before} has {segments_in_words(migration.retired_segment_ids)}."


def users_in_words(diff: Diff) -> str:
    """The number of compared users, and the shares of users that only one release knows."""
    drawn = f"A sample of {count(diff.users)} of {count(diff.user_count)} users was"
    subject = drawn if diff.users < diff.user_count else f"All {count(diff.users)} users of the log were"
    text = f"{subject} compared. {count(diff.compared)} are known to both releases; all shares are of these."
    for release, number in ((diff.before, diff.only_before), (diff.after, diff.only_after)):
        if number:
            text += f" {percent(number / diff.users, 1)} are known to release {release} only."
    return text


def flows_in_words(diff: Diff) -> Iterator[str]:
    """The flow chart in words."""
    yield f"Bands of users from the segments of release {diff.before} to those of release {diff.after}."
    for flow in diff.migration.flows:
        yield f"{count(flow.user_count)} from {_start(flow.from_segment_id)} to segment {flow.to_segment_id}."


def small_flows(diff: Diff) -> str:
    """The note that small flows are merged; empty if there is no smallest size."""
    least = diff.min_segment_size
    return f"Flows of fewer than {least} users are merged by their target segment." if least > 1 else ""


def overlap_in_words(diff: Diff) -> str:
    """The chart of common items in words."""
    shares = [f"{number}: {percent(share, 1)}" for number, share in enumerate(diff.items.counts)]
    return f"Bars of users by how many of their first {diff.items.top_k} items stay. {'; '.join(shares)}."


def items_in_words(diff: Diff) -> Iterator[str]:
    """How far the item lists of both releases agree."""
    items = diff.items
    low, middle, high = (percent(items.quantiles[place]) for place in (0, 2, 4))
    yield (
        f"On average {percent(items.overlap, 1)} of a user’s first {items.top_k} items stay; the median user keeps "
        f"{middle}, 5 % of users keep at most {low} and 5 % keep at least {high}."
    )
    yield f"{percent(items.none_in_common, 1)} of users keep none."
    if items.moved_places is not None and items.score_shift is not None and items.score_shift_interval is not None:
        lowest, highest = items.score_shift_interval
        yield (
            f"An item that stays moves by {items.moved_places:.1f} places on average; its score changes by "
            f"{signed(items.score_shift, 3)} ({signed(lowest, 3)} to {signed(highest, 3)} for 90 % of them)."
        )
        if not diff.vectors.same_encoder:
            yield "Scores of two encoders can have different scales."


def vectors_in_words(diff: Diff) -> Iterator[str]:
    """How far the user embeddings of both releases agree."""
    vectors = diff.vectors
    if vectors.neighbours is None or vectors.by_chance is None:
        yield "There are too few users to compare their neighbours."
    else:
        yield (
            f"{percent(vectors.neighbours, 1)} of a user’s nearest users stay the same "
            f"({percent(vectors.by_chance, 1)} would by chance)."
        )
    if vectors.cosine is None or vectors.cosine_low is None:
        yield "The encoders differ, so the coordinates of their embeddings cannot be compared."
    else:
        yield (
            f"Both have the same encoder. Cosine of a user’s two embeddings: {vectors.cosine:.4f} on average, "
            f"at most {vectors.cosine_low:.4f} for 5 % of users."
        )


def confidence_in_words(diff: Diff) -> str:
    """Shares of users with a confident segment by both releases."""
    shares = diff.sureness
    if shares is None:
        return "One of the releases has no calibration, so confidence cannot be compared."
    return (
        f"{percent(shares.before, 1)} of users have a confident segment by release {diff.before} and "
        f"{percent(shares.after, 1)} by release {diff.after}: {percent(shares.lost, 1)} lose it and "
        f"{percent(shares.gained, 1)} gain it."
    )


def catalogue_in_words(diff: Diff) -> str:
    """Numbers of new items and of items that are gone."""
    items = diff.catalogue
    if not items.new and not items.gone:
        return f"Both releases have the same {count(items.after)} items."
    return (
        f"{count(items.new)} items are new ({percent(items.new_popularity, 1)} of the events of release "
        f"{diff.after}) and {count(items.gone)} are gone ({percent(items.gone_popularity, 1)} of the events of "
        f"release {diff.before})."
    )


def speed_in_words(diff: Diff) -> str:
    """The time of both encoders for a user."""
    before, after = diff.microseconds
    return (
        f"The encoder takes {before:.0f} µs per user in release {diff.before} and {after:.0f} µs in release "
        f"{diff.after} ({after / before:.2f} times), measured in turn with ONNX Runtime on one thread of this machine."
    )


def test_in_words(diff: Diff) -> str:
    """Whether the figures of quality can be compared."""
    if not diff.quality:
        return "Neither manifest has figures of quality."
    return {
        "same": "Both were tested on the same log and split. `segrec-train compare` shows, for their runs, whether a "
        "difference is chance.",
        "different": "They were tested on different logs or splits, which alone can cause a difference.",
        "unknown": "The run of one release was not diff, so it is unknown whether both were tested on the same users.",
    }[diff.same_test]


def signed(number: float, digits: int) -> str:
    """A change with its sign; 0 has no sign."""
    text = f"{abs(number):.{digits}f}"
    return text if not float(text) else f"{'+' if number > 0 else '−'}{text}"


def quality_rows(diff: Diff) -> list[QualityFigure]:
    """The figures of the methods that answer, without baselines."""
    return [figure for figure in diff.quality if quality_name(figure)]


def quality_name(figure: QualityFigure) -> str:
    """The readable name of a manifest's figure; empty for baselines."""
    if figure.method not in _METHODS or figure.metric not in _METRICS:
        return ""
    return f"{_METRICS[figure.metric]}@{figure.k} ({figure.method}, {figure.protocol})"


def rows(diff: Diff) -> list[DiffRow]:
    """The rows of the table of all figures."""
    items, vectors, catalogue, confident = diff.items, diff.vectors, diff.catalogue, diff.sureness
    table_rows = [
        DiffRow("users in another segment", "", "", percent(diff.changed, 1)),
        DiffRow(f"first {items.top_k} items that stay", "", "", percent(items.overlap, 1)),
        DiffRow("users who keep no item", "", "", percent(items.none_in_common, 1)),
    ]
    if items.score_shift is not None:
        table_rows.append(DiffRow("score of an item that stays", "", "", signed(items.score_shift, 3)))
    if confident is not None:
        before, after = percent(confident.before, 1), percent(confident.after, 1)
        change = f"{percent(confident.lost, 1)} lose it, {percent(confident.gained, 1)} gain it"
        table_rows.append(DiffRow("users with a confident segment", before, after, change))
    if vectors.neighbours is not None:
        table_rows.append(DiffRow("nearest users that stay", "", "", percent(vectors.neighbours, 1)))
    if vectors.cosine is not None:
        table_rows.append(DiffRow("cosine of both embeddings", "", "", f"{vectors.cosine:.4f}"))
    change = f"{count(catalogue.new)} new, {count(catalogue.gone)} gone"
    table_rows.append(DiffRow("items", count(catalogue.before), count(catalogue.after), change))
    time_before, time_after = diff.microseconds
    ratio = f"{time_after / time_before:.2f} ×"
    table_rows.append(DiffRow("encoder, µs per user", f"{time_before:.0f}", f"{time_after:.0f}", ratio))
    table_rows += [DiffRow(quality_name(figure), *_values(figure)) for figure in quality_rows(diff)]
    return table_rows


def _values(figure: QualityFigure) -> tuple[str, str, str]:
    before, after = figure.pair
    shown = ["–" if value is None else f"{value:.4f}" for value in figure.pair]
    change = "" if before is None or after is None else signed(after - before, 4)
    return shown[0], shown[1], change


def tables(diff: Diff) -> RenderableType:
    """The account, the verdict, the tables and the notes for a terminal."""
    table = Table("figure", title=f"Release {diff.before} and release {diff.after}")
    for heading in (f"release {diff.before}", f"release {diff.after}", "change"):
        table.add_column(heading, justify="right")
    for row in rows(diff):
        table.add_row(*row)
    notes = [*moves_in_words(diff), test_in_words(diff), users_in_words(diff)]
    account: list[RenderableType] = [diff.account.table(), ""] if diff.account else []
    return Group(*account, verdict(diff), "", table, "", _flows_table(diff), "", *notes)


def _flows_table(diff: Diff) -> RenderableType:
    moved = [flow for flow in diff.migration.flows if flow.from_segment_id != flow.to_segment_id]
    if not moved:
        return "No flow between segments is large enough to be shown."
    table = Table("from segment", "to segment", title="Who changes segment")
    table.add_column("users", justify="right")
    for flow in moved[:_MOST_FLOWS]:
        start = str(flow.from_segment_id) if flow.from_segment_id else "small flows"
        table.add_row(start, str(flow.to_segment_id), count(flow.user_count))
    return table


def _start(segment_id: int) -> str:
    return f"segment {segment_id}" if segment_id else "small flows"
