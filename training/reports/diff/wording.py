"""The sentences and tables of `segrec-train diff`."""

from collections.abc import Iterator
from typing import NamedTuple

from humanize import natural_list
from rich.console import Group, RenderableType
from rich.table import Table

from training.reports.diff.figures import Diff, QualityFigure
from training.reports.wording import count, percent, segments_in_words

LITTLE, MUCH = (0.05, 0.9), (0.3, 0.5)
"""Share of users in another segment, and of first items kept: where little changes, and beyond which much does."""

_METHODS = ("encoder", "hybrid", "personal", "segment")
_MEASURES = {"ndcg@10": "NDCG@10", "hr@10": "HR@10"}
_MAIN = ("hybrid_ndcg@10", "as served/encoder/ndcg@10", "leave-one-out/encoder/ndcg@10")
_MOST_FLOWS = 15


class DiffRow(NamedTuple):
    """A thing that was compared: its name, each release's figure where it has one, and what is said of both."""

    name: str
    before: str
    after: str
    both: str


def verdict(found: Diff) -> str:
    """What changes, in one sentence."""
    parts = [
        f"{percent(found.changed)} of users are in another segment",
        f"{percent(found.items.overlap)} of a user’s first {found.items.top_k} items stay",
    ]
    sentence = f"{_level(found)} from release {found.before} to release {found.after}: {natural_list(parts)}"
    return f"{sentence}{_quality_part(found)}."


def _level(found: Diff) -> str:
    if found.changed <= LITTLE[0] and found.items.overlap >= LITTLE[1]:
        return "Little changes"
    return "Much changes" if found.changed > MUCH[0] or found.items.overlap < MUCH[1] else "Some things change"


def _quality_part(found: Diff) -> str:
    main = next((one for name in _MAIN for one in found.quality if one.name == name and None not in one.pair), None)
    if main is None:
        return "; which of them foretells better, they do not tell"
    before, after = (f"{value:.4f}" for value in main.pair)
    if found.same_test == "same":
        went = f"stays {after}" if before == after else f"goes from {before} to {after}"
        return f"; {quality_name(main)} {went} on the same test"
    whether = "on other users" if found.same_test == "different" else "perhaps on other users"
    return f"; {quality_name(main)} was {before} and is {after}, measured {whether}"


def moves_in_words(found: Diff) -> Iterator[str]:
    """What became of the segments, a sentence each."""
    migration = found.migration
    yield f"{percent(1 - found.changed, 1)} of users stay in their segment."
    yield from (
        f"{segments_in_words(one.from_segment_ids).capitalize()} splits into {segments_in_words(one.to_segment_ids)}."
        for one in migration.splits
    )
    yield from (
        f"{segments_in_words(one.from_segment_ids).capitalize()} come together in "
        f"{segments_in_words(one.to_segment_ids)}."
        for one in migration.merges
    )
    if migration.born_segment_ids:
        yield f"Only release {found.after} has {segments_in_words(migration.born_segment_ids)}."
    if migration.retired_segment_ids:
        yield f"Only release {found.before} has {segments_in_words(migration.retired_segment_ids)}."


def users_in_words(found: Diff) -> str:
    """Who was asked about, and who could not be compared."""
    drawn = f"A sample of {count(found.users)} of {count(found.user_count)} users was"
    whom = drawn if found.users < found.user_count else f"All {count(found.users)} users of the log were"
    told = f"{whom} asked about. {count(found.compared)} are known to both releases; all shares are of these."
    for release, number in ((found.before, found.only_before), (found.after, found.only_after)):
        if number:
            told += f" {percent(number / found.users, 1)} are known to release {release} only."
    return told


def flows_in_words(found: Diff) -> Iterator[str]:
    """All bands of the chart of moves."""
    yield f"Bands of users from the segments of release {found.before} to those of release {found.after}."
    for flow in found.migration.flows:
        yield f"{count(flow.user_count)} from {_start(flow.from_segment_id)} to segment {flow.to_segment_id}."


def small_flows(found: Diff) -> str:
    """That small flows are told together; empty where there is no least size."""
    least = found.min_segment_size
    return f"Flows of fewer than {least} users are told together, by where they lead." if least > 1 else ""


def overlap_in_words(found: Diff) -> str:
    """The bars of the chart of common items."""
    shares = [f"{number}: {percent(share, 1)}" for number, share in enumerate(found.items.counts)]
    return f"Bars of users by how many of their first {found.items.top_k} items stay. {'; '.join(shares)}."


def items_in_words(found: Diff) -> Iterator[str]:
    """How far the lists of items go together."""
    items = found.items
    low, middle, high = (percent(items.quantiles[place]) for place in (0, 2, 4))
    yield (
        f"On average {percent(items.overlap, 1)} of a user’s first {items.top_k} items stay; the user in the middle "
        f"keeps {middle}, one in twenty at most {low} and one in twenty at least {high}."
    )
    yield f"{percent(items.none_in_common, 1)} of users keep none."
    if items.moved_places is not None and items.score_shift is not None and items.score_shift_interval is not None:
        lowest, highest = items.score_shift_interval
        yield (
            f"An item that stays moves by {items.moved_places:.1f} places on average; its score changes by "
            f"{signed(items.score_shift, 3)} ({signed(lowest, 3)} to {signed(highest, 3)} for nine in ten)."
        )
        if not found.vectors.same_encoder:
            yield "Scores of two encoders need not be on one scale."


def vectors_in_words(found: Diff) -> Iterator[str]:
    """What became of the user embeddings."""
    vectors = found.vectors
    if vectors.neighbours is None or vectors.by_chance is None:
        yield "There are too few users to compare their neighbours."
    else:
        yield (
            f"{percent(vectors.neighbours, 1)} of a user’s nearest users stay the same "
            f"({percent(vectors.by_chance, 1)} would by chance)."
        )
    if vectors.cosine is None or vectors.cosine_low is None:
        yield "The encoders differ, so their numbers cannot be compared one by one."
    else:
        yield (
            f"Both have the same encoder. Cosine of a user’s two embeddings: {vectors.cosine:.4f} on average, "
            f"{vectors.cosine_low:.4f} at the lowest twentieth."
        )


def sureness_in_words(found: Diff) -> str:
    """How many users have a confident segment, then and now."""
    sure = found.sureness
    if sure is None:
        return "One of the releases does not tell how sure a segment is, so nothing can be said of that."
    return (
        f"{percent(sure.before, 1)} of users have a confident segment by release {found.before} and "
        f"{percent(sure.after, 1)} by release {found.after}: {percent(sure.lost, 1)} lose it and "
        f"{percent(sure.gained, 1)} gain it."
    )


def catalogue_in_words(found: Diff) -> str:
    """Items that came and went."""
    items = found.catalogue
    if not items.new and not items.gone:
        return f"Both releases have the same {count(items.after)} items."
    return (
        f"{count(items.new)} items are new ({percent(items.new_popularity, 1)} of the events that release "
        f"{found.after} counts) and {count(items.gone)} are gone ({percent(items.gone_popularity, 1)} of those of "
        f"release {found.before})."
    )


def speed_in_words(found: Diff) -> str:
    """Time of both encoders."""
    before, after = found.microseconds
    return (
        f"The encoder takes {before:.0f} µs for a user by release {found.before} and {after:.0f} µs by release "
        f"{found.after} ({after / before:.2f} times), by ONNX Runtime on one thread of this machine, in turn."
    )


def test_in_words(found: Diff) -> str:
    """Whether figures of quality can be set side by side."""
    if not found.quality:
        return "Neither release tells figures of quality."
    return {
        "same": "Both were tested on the same log and split. Whether a difference is chance, "
        "segrec-train compare says of their runs.",
        "different": "They were tested on different logs or splits: a difference may come from that alone.",
        "unknown": "The run of one of them was not found, so nothing says whether both were tested on the same users.",
    }[found.same_test]


def signed(number: float, digits: int) -> str:
    """A change with its sign; 0 has none."""
    text = f"{abs(number):.{digits}f}"
    return text if not float(text) else f"{'+' if number > 0 else '−'}{text}"


def quality_rows(found: Diff) -> list[QualityFigure]:
    """The figures worth a place in a table: those of what answers, without baselines."""
    return [one for one in found.quality if quality_name(one)]


def quality_name(figure: QualityFigure) -> str:
    """A manifest's name of a figure as people say it; empty for baselines."""
    *protocol, method, measure = figure.name.replace("_", "/", 1 if "/" not in figure.name else 0).split("/")
    if method not in _METHODS or measure not in _MEASURES:
        return ""
    return f"{_MEASURES[measure]} ({', '.join([method, *protocol])})"


def rows(found: Diff) -> list[DiffRow]:
    """All figures in a table."""
    items, vectors, catalogue, sure = found.items, found.vectors, found.catalogue, found.sureness
    told = [
        DiffRow("users in another segment", "", "", percent(found.changed, 1)),
        DiffRow(f"first {items.top_k} items that stay", "", "", percent(items.overlap, 1)),
        DiffRow("users of whom no item stays", "", "", percent(items.none_in_common, 1)),
    ]
    if items.score_shift is not None:
        told.append(DiffRow("score of an item that stays", "", "", signed(items.score_shift, 3)))
    if sure is not None:
        moved = f"{percent(sure.lost, 1)} lose it, {percent(sure.gained, 1)} gain it"
        told.append(DiffRow("users with a confident segment", percent(sure.before, 1), percent(sure.after, 1), moved))
    if vectors.neighbours is not None:
        told.append(DiffRow("nearest users that stay", "", "", percent(vectors.neighbours, 1)))
    if vectors.cosine is not None:
        told.append(DiffRow("cosine of both embeddings", "", "", f"{vectors.cosine:.4f}"))
    moved = f"{count(catalogue.new)} new, {count(catalogue.gone)} gone"
    told.append(DiffRow("items", count(catalogue.before), count(catalogue.after), moved))
    slow, fast = found.microseconds
    told.append(DiffRow("encoder, µs a user", f"{slow:.0f}", f"{fast:.0f}", f"{fast / slow:.2f} ×"))
    told += [DiffRow(quality_name(one), *_values(one)) for one in quality_rows(found)]
    return told


def _values(figure: QualityFigure) -> tuple[str, str, str]:
    before, after = figure.pair
    shown = ["–" if value is None else f"{value:.4f}" for value in figure.pair]
    both = "" if before is None or after is None else signed(after - before, 4)
    return shown[0], shown[1], both


def tables(found: Diff) -> RenderableType:
    """All of it for a terminal."""
    table = Table("figure", title=f"Release {found.before} and release {found.after}")
    for heading in (f"release {found.before}", f"release {found.after}", "change"):
        table.add_column(heading, justify="right")
    for row in rows(found):
        table.add_row(*row)
    notes = [*moves_in_words(found), test_in_words(found), users_in_words(found)]
    return Group(verdict(found), "", table, "", _flows_table(found), "", *notes)


def _flows_table(found: Diff) -> RenderableType:
    moved = [flow for flow in found.migration.flows if flow.from_segment_id != flow.to_segment_id]
    if not moved:
        return "No flow between segments is large enough to be told."
    table = Table("from segment", "to segment", title="Who changes segment")
    table.add_column("users", justify="right")
    for flow in moved[:_MOST_FLOWS]:
        start = str(flow.from_segment_id) if flow.from_segment_id else "small flows"
        table.add_row(start, str(flow.to_segment_id), count(flow.user_count))
    return table


def _start(segment_id: int) -> str:
    return f"segment {segment_id}" if segment_id else "small flows"
