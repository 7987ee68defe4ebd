"""The page of `segrec-train diff`: one HTML file that opens without a network."""

from collections.abc import Iterator
from pathlib import Path

import altair as alt
import polars as pl

from server.core.profiles import Migration, SegmentProfile
from server.core.release import Release
from training.errors import ConfigError
from training.reports.diff import wording as words
from training.reports.diff.figures import Diff
from training.reports.page import Picture, drawn, rendered
from training.reports.segments.content import MOST_SEGMENTS, Card, Moves
from training.reports.segments.flow_chart import moves
from training.reports.style import ACCENT, Chart, Page
from training.reports.wording import percent
from training.repository import find_release
from training.runs import write_atomically

_TEMPLATE = "diff/diff.html.j2"


def write_page(found: Diff, repository: Path, out: Path) -> None:
    """Write the page on two releases of `repository` to `out`. Raises ConfigError where that cannot be done."""
    page = page_of(found, find_release(repository, found.before), find_release(repository, found.after))
    try:
        write_atomically(out, page)
    except OSError as error:
        raise ConfigError(f"Cannot write {out}: {error.strerror or error}.") from error


def page_of(found: Diff, before: Release, after: Release) -> str:
    """The HTML of the page."""
    title = f"Release {found.before} and release {found.after}"
    pictures = drawn(pictures_of(found, before, after))
    return rendered(_TEMPLATE, title=title, found=found, pictures=pictures, words=words)


def pictures_of(found: Diff, before: Release, after: Release) -> Iterator[Picture]:
    """The pictures for which there is something to draw."""
    told = {row.segment_id for row in found.segments[:MOST_SEGMENTS]}
    cards = [Card(profile, (), None) for profile in _in_order(found, after) if profile.segment_id in told]
    migration = found.migration
    if any(flow.to_segment_id in told for flow in migration.flows):
        moved = Moves(_only(migration, told), before.segments)
        alt_text = " ".join(words.flows_in_words(found))
        yield Picture("moves", alt_text, lambda page: moves(moved, cards, page, elsewhere="small flows"))
    yield Picture("overlap", words.overlap_in_words(found), lambda page: overlap(found, page))


def _only(migration: Migration, told: set[int]) -> Migration:
    flows = tuple(flow for flow in migration.flows if flow.to_segment_id in told)
    return migration.model_copy(update={"flows": flows})


def _in_order(found: Diff, after: Release) -> list[SegmentProfile]:
    profiles = {profile.segment_id: profile for profile in after.segments}
    return [profiles[row.segment_id] for row in found.segments if row.segment_id in profiles]


def overlap(found: Diff, page: Page) -> Chart:
    """Bars of users by how many of their first items stay."""
    counts = found.items.counts
    texts = [_hundredths(share) for share in counts]
    frame = pl.DataFrame({"items": range(len(counts)), "share": counts, "text": texts})
    axis = alt.Axis(title=f"how many of the first {found.items.top_k} items stay, and % of users", labelAngle=0)
    up = alt.Scale(domain=[0, 1.12 * max(counts)], nice=False)
    base = alt.Chart(frame).encode(x=alt.X("items:O", axis=axis), y=alt.Y("share:Q", axis=None, scale=up))
    both: alt.LayerChart = base.mark_bar(color=ACCENT) + base.mark_text(dy=-8).encode(text="text:N")
    return both.properties(width=page.width - 16, height=200)


def _hundredths(share: float) -> str:
    """A share as a bar names it; nothing for none."""
    return percent(share).replace("\xa0%", "").replace("\xa0", "") if share else ""
