"""The report of a run: one HTML file that opens offline, and its pictures as PNG files.

Each picture is in the page twice as inline SVG: for a wide page and for a phone. The page has no scripts.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import vl_convert
from markupsafe import Markup

from training.config import ReportSettings
from training.reports.page import Picture, all_inlined, rendered
from training.reports.segments import card_wording, charts, wording
from training.reports.segments.content import Content, read_content
from training.reports.segments.flow_chart import moves
from training.reports.segments.user_map import users_map
from training.reports.style import NARROW, Chart, Page, colour_of
from training.runs import Progress, Run, no_progress, write_atomically

REPORT = "report.html"

_TEMPLATE = "segments/report.html.j2"
_PIXELS_PER_UNIT = 2
"""Pixels of a PNG file per pixel of the page."""


def report(
    run: Run,
    repository: Path,
    out: Path | None = None,
    progress: Progress = no_progress,
    settings: ReportSettings | None = None,
) -> Path:
    """Write `report.html` and the PNG files into `out` (default: `report/` of the run); returns the page's path.

    The release before is read from `repository`; `settings` take the place of those of the run. Raises RunError if the
    segment stage is not done.
    """
    run.require("segment")
    with run.stage("report") as stage:
        progress("reading", 0, 0)
        content = read_content(run, repository, settings)
        directory = out or stage.directory
        directory.mkdir(parents=True, exist_ok=True)
        for old in stage.directory.glob("*.png"):  # also removes pictures of segments that are gone
            old.unlink()
        pictures = list(pictures_of(content))
        drawn: dict[str, Markup] = {}
        for done, picture in enumerate(pictures):
            progress(picture.name, done, len(pictures))
            svgs = picture.svgs()
            png = vl_convert.svg_to_png(svgs[picture.pages[0]], scale=_PIXELS_PER_UNIT)
            (directory / f"{picture.name}.png").write_bytes(png)
            drawn[picture.name] = all_inlined(picture, svgs)
        write_atomically(directory / REPORT, page_of(content, drawn))
        stage.figures |= {"segments": len(content.cards), "pictures": len(pictures)}
    return directory / REPORT


def pictures_of(content: Content) -> Iterator[Picture]:
    """The pictures that have data."""
    cards = content.cards
    if cards:
        before = content.moves.previous if content.moves else ()
        yield Picture("sizes", wording.sizes_in_words(content), lambda page: charts.sizes(cards, before, page))
        yield Picture("map", wording.map_in_words(content), lambda page: users_map(content.user_map, cards, page))
    if (sweep := content.sweep) and sweep.rows:
        yield Picture("k_sweep", wording.sweep_in_words(sweep), lambda page: charts.k_sweep(sweep, page))
    if (moved := content.moves) and moved.migration.flows and cards:
        alt = " ".join(wording.flows_in_words(moved))
        yield Picture("moves", alt, lambda page: moves(moved, cards, page))
    if (quality := content.quality) and quality.slices:
        yield Picture("quality", wording.quality_in_words(quality), lambda page: charts.quality(quality, page))
    if content.curves:
        yield Picture("curves", wording.curves_in_words(content), lambda page: charts.curves(content.curves, page))
    yield from _rhythms(content)
    for card in cards:
        if card.people.weeks:
            alt = wording.weeks_in_words(card)
            yield Picture(
                f"weeks-{card.profile.segment_id}", alt, partial(_same_on_all_pages, charts.weeks(card)), (NARROW,)
            )


def _rhythms(content: Content) -> Iterator[Picture]:
    profiles = [card.profile for card in content.cards]
    usual = charts.usual_rhythm(profiles)
    for profile in profiles:
        if text := wording.rhythm_in_words(profile, content.settings.time_zone):
            alt = f"Bars of events by hour and weekday. {text}"
            chart = charts.rhythm(profile, usual, content.settings.time_zone)
            yield Picture(f"rhythm-{profile.segment_id}", alt, partial(_same_on_all_pages, chart), (NARROW,))


def _same_on_all_pages(chart: Chart, page: Page) -> Chart:  # noqa: ARG001
    """The chart of a card, which has the same width on all pages."""
    return chart


def page_of(content: Content, drawn: Mapping[str, Markup]) -> str:
    """The HTML of a report; `drawn` are its pictures by name."""
    names = {card.profile.segment_id: card.name for card in content.cards}
    return rendered(
        _TEMPLATE,
        content=content,
        pictures=drawn,
        wording=wording,
        cards=card_wording,
        colour_of=colour_of,
        names=names,
    )
