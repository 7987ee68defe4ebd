"""The page of `segrec-train diff`: one HTML file that opens offline."""

from collections.abc import Iterator
from pathlib import Path

import altair as alt
import polars as pl

from server.core.profiles import Migration, SegmentProfile
from server.core.release import Release
from training.errors import ConfigError
from training.reports.diff import wording
from training.reports.diff.figures import Diff
from training.reports.page import Picture, drawn, rendered
from training.reports.segments.content import MOST_SEGMENTS, Card, Moves
from training.reports.segments.flow_chart import moves
from training.reports.style import ACCENT, Chart, Page
from training.reports.wording import percent
from training.repository import find_release
from training.runs import write_atomically

_TEMPLATE = "diff/diff.html.j2"


def write_page(diff: Diff, repository: Path, out: Path) -> None:
    """Write the page about two releases of `repository` to `out`. Raises ConfigError if `out` cannot be written."""
    page = page_of(diff, find_release(repository, diff.before), find_release(repository, diff.after))
    try:
        write_atomically(out, page)
    except OSError as error:
        raise ConfigError(f"Cannot write {out}: {error.strerror or error}.") from error


def page_of(diff: Diff, before: Release, after: Release) -> str:
    """The HTML of the page."""
    title = f"Release {diff.before} and release {diff.after}"
    pictures = drawn(pictures_of(diff, before, after))
    return rendered(_TEMPLATE, title=title, diff=diff, pictures=pictures, wording=wording)


def pictures_of(diff: Diff, before: Release, after: Release) -> Iterator[Picture]:
    """The pictures that have data."""
    shown_ids = {row.segment_id for row in diff.segments[:MOST_SEGMENTS]}
    cards = [Card(profile, (), ()) for profile in _in_order(diff, after) if profile.segment_id in shown_ids]
    migration = diff.migration
    if any(flow.to_segment_id in shown_ids for flow in migration.flows):
        moved = Moves(_flows_into(migration, shown_ids), before.segments)
        alt_text = " ".join(wording.flows_in_words(diff))
        yield Picture("moves", alt_text, lambda page: moves(moved, cards, page, elsewhere="small flows"))
    yield Picture("overlap", wording.overlap_in_words(diff), lambda page: overlap(diff, page))


def _flows_into(migration: Migration, segment_ids: set[int]) -> Migration:
    flows = tuple(flow for flow in migration.flows if flow.to_segment_id in segment_ids)
    return migration.model_copy(update={"flows": flows})


def _in_order(diff: Diff, after: Release) -> list[SegmentProfile]:
    profiles = {profile.segment_id: profile for profile in after.segments}
    return [profiles[row.segment_id] for row in diff.segments if row.segment_id in profiles]


def overlap(diff: Diff, page: Page) -> Chart:
    """Bars: shares of users by the number of their first items that stay."""
    counts = diff.items.counts
    texts = [_hundredths(share) for share in counts]
    frame = pl.DataFrame({"items": range(len(counts)), "share": counts, "text": texts})
    axis = alt.Axis(title=f"number of the first {diff.items.top_k} items that stay, and % of users", labelAngle=0)
    up = alt.Scale(domain=[0, 1.12 * max(counts)], nice=False)
    base = alt.Chart(frame).encode(x=alt.X("items:O", axis=axis), y=alt.Y("share:Q", axis=None, scale=up))
    both: alt.LayerChart = base.mark_bar(color=ACCENT) + base.mark_text(dy=-8).encode(text="text:N")
    return both.properties(width=page.width - 16, height=200)


def _hundredths(share: float) -> str:
    """The label of a bar: its percentage without the sign; empty for 0."""
    return percent(share).replace("\xa0%", "").replace("\xa0", "") if share else ""
