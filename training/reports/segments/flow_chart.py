"""The alluvial chart of users who move between segments, drawn with Vega-Altair."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import altair as alt
import polars as pl

from training.reports.segments.content import Card, Moves
from training.reports.segments.flows import ELSEWHERE, Alluvial, Node, alluvial
from training.reports.style import GREY, Chart, Page, colour_of
from training.reports.wording import count

_LEAST_BODY, _BODY_EACH, _GAP = 280.0, 26.0, 20.0
"""Pixels: least total height of all bars, height per segment, space between two bars."""

_THICK = 12.0
"""Width of a bar in pixels."""


_LETTER = 8
"""Pixels of a wide letter; names have several lines where they are longer than their space."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """Widths in pixels: `margin` for the names on each side, `inside` for the bands."""

    margin: int
    inside: int

    @property
    def across(self) -> alt.Scale:
        """The scale of the whole width, on which the bands run from 0 to 1."""
        return alt.Scale(domain=[-self.margin / self.inside, 1 + self.margin / self.inside], nice=False)


def moves(moved: Moves, cards: Sequence[Card], page: Page, elsewhere: str = "new, or in small flows") -> Chart:
    """Bands of users from the segments of the release before to the segments of this release.

    `elsewhere` is the label of the bar of users who come from no segment.
    """
    order = [card.profile.segment_id for card in cards]
    body = max(_LEAST_BODY, _BODY_EACH * len(order))
    layout = alluvial(moved.migration.flows, order, body, _GAP)
    margin = 240 if page.is_wide else 92
    frame = _Frame(margin, page.width - 2 * margin)
    up = alt.Scale(domain=[layout.height, 0], nice=False)
    before = {profile.segment_id: profile.label for profile in moved.previous} | {ELSEWHERE: elsewhere}
    now = {card.profile.segment_id: card.profile.label for card in cards}
    left = [_bar(node, before, page) | _across(-_THICK, 0, frame) for node in layout.left]
    right = [_bar(node, now, page) | _across(frame.inside, frame.inside + _THICK, frame) for node in layout.right]
    layers = [_bands(layout, frame, up), _bars([*left, *right], frame, up)]
    layers += [_names(left, "x", "right", frame, up), _names(right, "x2", "left", frame, up)]
    return alt.layer(*layers).properties(width=page.width - 8, height=layout.height)


def _across(start: float, end: float, frame: _Frame) -> dict[str, float]:
    return {"x": start / frame.inside, "x2": end / frame.inside}


def _bar(node: Node, labels: Mapping[int, str], page: Page) -> dict[str, object]:
    """A bar with its label; on a phone the label is the segment's number only."""
    name = f"{node.segment_id} {labels.get(node.segment_id, '')}".strip() if page.is_wide else str(node.segment_id)
    if node.segment_id == ELSEWHERE:
        name = labels[ELSEWHERE] if page.is_wide else "other"
    colour = GREY if node.segment_id == ELSEWHERE else colour_of(node.segment_id)
    return {"y": node.top, "y2": node.bottom, "name": name, "users": count(node.users), "colour": colour}


def _bands(layout: Alluvial, frame: _Frame, up: alt.Scale) -> alt.Chart:
    rows = [
        {"band": index, "x": x, "y": upper, "y2": lower, "colour": colour_of(band.flow.to_segment_id)}
        for index, band in enumerate(layout.bands)
        for x, upper, lower in zip(band.x.tolist(), band.upper.tolist(), band.lower.tolist(), strict=True)
    ]
    areas: alt.Chart = (
        alt.Chart(pl.DataFrame(rows))
        .mark_area(opacity=0.38)
        .encode(
            x=alt.X("x:Q", scale=frame.across, axis=None),
            y=alt.Y("y:Q", scale=up, axis=None),
            y2="y2:Q",
            detail="band:N",
            color=alt.Color("colour:N", scale=None),
        )
    )
    return areas


def _bars(rows: Sequence[Mapping[str, object]], frame: _Frame, up: alt.Scale) -> alt.Chart:
    rects: alt.Chart = (
        alt.Chart(pl.DataFrame(rows))
        .mark_rect(opacity=1)
        .encode(
            x=alt.X("x:Q", scale=frame.across, axis=None),
            x2="x2:Q",
            y=alt.Y("y:Q", scale=up, axis=None),
            y2="y2:Q",
            color=alt.Color("colour:N", scale=None),
        )
    )
    return rects


def _in_lines(text: str, frame: _Frame) -> str:
    return "\n".join(textwrap.wrap(text, max(8, frame.margin // _LETTER)))


def _names(
    rows: Sequence[Mapping[str, object]], edge: str, align: Literal["left", "right"], frame: _Frame, up: alt.Scale
) -> alt.Chart:
    """Name and number of users beside each bar."""
    labels = pl.DataFrame(rows).with_columns(
        ((pl.col("y") + pl.col("y2")) / 2).alias("middle"),
        pl.Series("text", [_in_lines(f"{row['name']} · {row['users']}", frame) for row in rows]),
    )
    away = -7 if align == "right" else 7
    texts: alt.Chart = (
        alt.Chart(labels)
        .mark_text(align=align, dx=away, baseline="middle", limit=frame.margin - 8, lineBreak="\n")
        .encode(
            x=alt.X(f"{edge}:Q", scale=frame.across, axis=None), y=alt.Y("middle:Q", scale=up, axis=None), text="text:N"
        )
    )
    return texts
