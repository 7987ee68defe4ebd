"""The style of the charts: sizes, colours, shapes, axes.

Each segment has its own colour and shape and is labelled by its number, so that charts can be read without colours.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import altair as alt
from segrec.visible import visible

INK, QUIET, LINE, GREY = "#1c1f24", "#565d68", "#d9dde3", "#8b929c"
ACCENT = "#0072b2"
COLOURS = ("#0072b2", "#d55e00", "#00805e", "#a03e99", "#8a6a00", "#3d3d3d", "#56b4e9", "#c2185b")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Noto Sans', sans-serif"

Chart = alt.Chart | alt.LayerChart | alt.FacetChart | alt.HConcatChart | alt.VConcatChart | alt.ConcatChart
AnyChart = TypeVar("AnyChart", alt.Chart, alt.LayerChart)


GUTTER = 64
"""Pixels left of a plot, for its axis and the space to its neighbour."""


@dataclass(frozen=True, slots=True)
class Page:
    """The page that a picture is drawn for: `width` in pixels, and the pixels for segment names, `names`."""

    width: int
    names: int

    @property
    def is_wide(self) -> bool:
        return self.width > 500

    def panels(self, columns: int) -> int:
        """Width in pixels of each of `columns` plots, without the `GUTTER` on their left."""
        return (self.width - 16) // columns - GUTTER

    def room_for(self, names: Sequence[str]) -> int:
        """Pixels for these names in a wide font, at most `self.names`."""
        return min(self.names, 7 * max(len(line) for name in names for line in self.lines_of(name)) + 8)

    def lines_of(self, name: str) -> list[str]:
        """A name in lines that fit into `names` pixels."""
        return textwrap.wrap(name, self.names // 7 - 1) or [name]

    def row_height(self, names: Sequence[str], least: int) -> int:
        """Pixels for a row, at least `least`, of which the names may have several lines."""
        return max(least, 16 * max(len(self.lines_of(name)) for name in names) + 8)


WIDE, NARROW = Page(920, 290), Page(330, 150)


def colour_of(segment_id: int) -> str:
    """The colour of a segment id, the same in every release."""
    return COLOURS[(segment_id - 1) % len(COLOURS)]


def shape_of(segment_id: int) -> str:
    """The shape of a segment id, the same in every release; shape and colour distinguish 56 ids."""
    return SHAPES[(segment_id - 1) % len(SHAPES)]


def names_axis(page: Page, names: Sequence[str]) -> alt.Axis:
    """An axis of segment names left of their rows, in several lines where they are long."""
    room = page.room_for(names)
    return alt.Axis(
        title=None,
        labelLimit=2 * room,
        labelExpr=_in_lines(names, page),
        minExtent=room,
        ticks=False,
        domain=False,
        grid=False,
    )


def legend_lines(names: Sequence[str], width: int) -> str:
    """Vega expression that gives the lines of a legend's label, which fit into `width` pixels."""
    return _in_lines(names, Page(width, width))


def _in_lines(names: Sequence[str], page: Page) -> str:
    """Vega expression that gives the lines of a label."""
    lines = {name: page.lines_of(name) for name in map(visible, names)}
    return f"{json.dumps(lines)}[datum.label]"


def values_scale(padding: float) -> alt.Scale:
    """A scale from the smallest to the largest value, not from zero, with `padding` pixels on both ends."""
    return alt.Scale(zero=False, nice=False, padding=padding)


def whole_axis(title: str, numbers: Sequence[int], most: int = 8) -> alt.Axis:
    """An axis with labels at some of these whole numbers, at most `most`."""
    step = -(-len(numbers) // most)
    return alt.Axis(title=title, values=list(numbers[::step]), format="d", grid=False)


def fitted(chart: AnyChart, page: Page, height: float) -> AnyChart:
    """The chart as wide as the page, including its axes."""
    return chart.properties(
        width=page.width, height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )


def beside(panels: Sequence[Chart], columns: int) -> Chart:
    """Plots in rows of `columns`; their frames are aligned whatever the width of their axes."""
    return alt.concat(*panels, columns=columns, bounds="flush", spacing={"row": 84, "column": GUTTER})


def styled(chart: Chart) -> Chart:
    """The chart with the fonts and colours that all charts share."""
    axis = {"labelColor": INK, "titleColor": QUIET, "gridColor": LINE, "domainColor": LINE, "tickColor": LINE}
    fonts = {"labelFontSize": 12.5, "titleFontSize": 12.5, "titleFontWeight": "normal"}
    configured: Chart = (
        chart.configure(
            font=FONT, background="white", padding={"left": 6, "right": 4, "top": 4, "bottom": 4}, aria=False
        )
        .configure_view(stroke=None)
        .configure_axis(labelPadding=5, titlePadding=8, **axis, **fonts)
        .configure_legend(labelColor=INK, labelFontSize=12.5, symbolSize=90, symbolStrokeWidth=0, symbolOpacity=1)
        .configure_title(
            color=INK, fontSize=13, fontWeight="bold", anchor="start", subtitleColor=QUIET, subtitleFontSize=12
        )
        .configure_text(color=INK, fontSize=12.5)
    )
    return configured
