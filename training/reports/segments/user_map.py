"""The map of users in a report: a scatter plot of user embeddings, coloured by segment."""

from collections.abc import Sequence

import altair as alt
import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.reports.segments.content import Card, UserMap
from training.reports.style import INK, LINE, Chart, Page, colour_of, legend_lines, shape_of

_PHONE_USERS = 1_500
"""Users on the map of a phone."""

_LABEL_DISTANCE = 26.0
"""Least pixels between the numbers of two segments."""


def users_map(user_map: UserMap, cards: Sequence[Card], page: Page) -> Chart:
    """Users as points on two principal components, with the number of each segment in the middle of its users."""
    width, height = page.width - 16, 520 if page.is_wide else 320
    points = _points(user_map, cards, page)
    labels = alt.Chart(middles(user_map, width, height)).encode(x="x:Q", y="y:Q", text="text:N")
    halo = labels.mark_text(fontSize=19, fontWeight="bold", stroke="white", strokeWidth=6, strokeJoin="round")
    numbers = labels.mark_text(fontSize=19, fontWeight="bold", color=INK)
    layers: Chart = points + halo + numbers
    return layers.properties(width=width, height=height, view=alt.ViewConfig(stroke=LINE))


def _points(user_map: UserMap, cards: Sequence[Card], page: Page) -> alt.Chart:
    step = 1 if page.is_wide else max(1, len(user_map.points) // _PHONE_USERS)
    names = {card.profile.segment_id: card.name for card in cards}
    x, y = user_map.points[::step].T
    ids = pl.Series("id", user_map.segment_ids[::step])
    frame = pl.DataFrame({"x": x, "y": y, "segment": ids.replace_strict(names, return_dtype=pl.String)})
    longest = max(map(len, names.values()))
    columns = min(3, max(1, page.width // (8 * longest + 60)))
    legend = alt.Legend(
        title=None,
        orient="bottom",
        columns=columns,
        columnPadding=36,
        rowPadding=6,
        labelLimit=page.width // columns - 24,
        labelExpr=legend_lines(list(names.values()), page.width // columns - 50),
    )
    colours = alt.Scale(domain=list(names.values()), range=[colour_of(number) for number in names])
    shapes = alt.Scale(domain=list(names.values()), range=[shape_of(number) for number in names])
    bare = alt.Axis(labels=False, ticks=False, grid=False, domain=False, title=None)
    scale = alt.Scale(zero=False, nice=False, padding=12)
    marks: alt.Chart = (
        alt.Chart(frame)
        .mark_point(filled=True, opacity=0.65, size=60 if len(frame) <= _PHONE_USERS and page.is_wide else 26)
        .encode(
            x=alt.X("x:Q", axis=bare, scale=scale),
            y=alt.Y("y:Q", axis=bare, scale=scale),
            color=alt.Color("segment:N", scale=colours, legend=legend),
            shape=alt.Shape("segment:N", scale=shapes, legend=legend),
        )
    )
    return marks


def middles(user_map: UserMap, width: float, height: float) -> pl.DataFrame:
    """Positions of segment numbers on a map of `width` × `height` pixels: `text`, `x`, `y`; none covers another."""
    ids = np.unique(user_map.segment_ids)
    places = np.array([np.median(user_map.points[user_map.segment_ids == number], axis=0) for number in ids])
    # Medians are moved apart in pixels, then converted back to the units of the points.
    low, span = user_map.points.min(0), np.ptp(user_map.points, axis=0)
    pixels = np.where(span > 0, span, 1.0) / np.array([width, height])
    places = low + pushed_apart((places - low) / pixels, _LABEL_DISTANCE) * pixels
    return pl.DataFrame({"text": ids.astype(str), "x": places[:, 0], "y": places[:, 1]})


def pushed_apart(places: NDArray[np.float64], least: float, rounds: int = 200) -> NDArray[np.float64]:
    """Points (N, 2) moved until no two are nearer than `least`, for at most `rounds` rounds."""
    moved = places + np.linspace(0, 1e-6, places.size).reshape(places.shape)  # separates equal points
    for _ in range(rounds):
        offset = moved[:, None] - moved[None]
        distance = np.linalg.norm(offset, axis=2)
        np.fill_diagonal(distance, np.inf)
        short = np.maximum(least - distance, 0.0)
        if not short.any():
            break
        moved = moved + (offset / distance[..., None] * short[..., None]).sum(1) * 0.55
    return moved
