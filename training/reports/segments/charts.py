"""The charts of a run's report, drawn with Vega-Altair for a wide page or for a phone."""

from collections.abc import Iterator, Mapping, Sequence

import altair as alt
import numpy as np
import polars as pl

from server.core.profiles import SegmentProfile
from training.reports.segments.content import Card, Quality
from training.reports.segments.sweep_charts import Sweep, SweepMeasure
from training.reports.style import (
    ACCENT,
    GUTTER,
    INK,
    QUIET,
    Chart,
    Page,
    beside,
    colour_of,
    fitted,
    names_axis,
    values_scale,
    whole_axis,
)
from training.reports.wording import percent

_SHORT = "abs(datum.value) >= 10000 ? format(datum.value, '~s') : format(datum.value, ',.4~r')"
"""Vega expression for axis labels of figures of any size."""

_CURVES = {"loss": ("Training loss", "smaller is better"), "ndcg@10": ("NDCG@10 on validation", "larger is better")}


def sizes(cards: Sequence[Card], previous: Sequence[SegmentProfile], page: Page) -> Chart:
    """Bars: share of users by segment, with a mark at the share in the release before."""
    before = {profile.segment_id: profile.share for profile in previous}
    rows = [
        {
            "name": card.name,
            "share": card.profile.share,
            "before": before.get(card.profile.segment_id),
            "text": f"{card.profile.user_count:,} · {percent(card.profile.share)}",
            "colour": colour_of(card.profile.segment_id),
        }
        for card in cards
    ]
    frame = pl.DataFrame(rows, schema_overrides={"before": pl.Float64})
    frame = frame.with_columns(pl.max_horizontal("share", "before").alias("end"))
    room = 1.2 if page.is_wide else 1.8  # right of the longest bar, for its text
    scale = alt.Scale(domain=[0, frame["end"].to_numpy().max() * room], nice=False)
    base = alt.Chart(frame).encode(y=alt.Y("name:N", sort=None, axis=names_axis(page, frame["name"].to_list())))
    bars = base.mark_bar(height=18, cornerRadiusEnd=2).encode(
        x=alt.X("share:Q", scale=scale, axis=None), color=alt.Color("colour:N", scale=None)
    )
    ticks = base.mark_tick(color=INK, thickness=3, height=26).encode(x=alt.X("before:Q", scale=scale, axis=None))
    texts = base.mark_text(align="left", dx=9).encode(x=alt.X("end:Q", scale=scale, axis=None), text="text:N")
    layers: alt.LayerChart = bars + ticks + texts
    return fitted(layers, page, page.row_height(frame["name"].to_list(), 30) * len(rows))


def k_sweep(sweep: Sweep, page: Page) -> Chart:
    """One panel per figure of the sweep over k, with the chosen k marked."""
    columns = 3 if page.is_wide else 1
    rows = [row for measure in sweep.measures() for row in _points(sweep, measure)]
    axis = alt.Axis(title=None, tickCount=4, labelExpr=_SHORT)
    up = alt.Y("value:Q", axis=axis, scale=values_scale(8))
    base = alt.Chart().encode(x=alt.X("k:Q", axis=whole_axis("k", [k for k, _ in sweep.rows]), scale=values_scale(10)))
    chosen = base.transform_filter("datum.chosen")
    layers = [
        chosen.mark_rule(color=QUIET, strokeDash=[4, 3]),
        base.mark_rule(color=ACCENT, opacity=0.55).encode(y=alt.Y("low:Q", title=None), y2="high:Q"),
        base.mark_line(color=ACCENT, strokeWidth=2).encode(y=up),
        base.mark_point(color=ACCENT, filled=True, size=36, opacity=1).encode(y=up),
        chosen.mark_point(color=INK, size=150, strokeWidth=2).encode(y=up),
    ]
    header = alt.Header(title=None, labelExpr="split(datum.label, '|')", labelAnchor="start", labelFontSize=13)
    panels = alt.layer(*layers).properties(width=page.panels(columns), height=130)
    order = list(dict.fromkeys(str(row["measure"]) for row in rows))
    facet = alt.Facet("measure:N", sort=order, header=header)
    faceted: Chart = (
        panels.facet(facet=facet, data=pl.DataFrame(rows), columns=columns)
        .resolve_scale(y="independent")
        .resolve_axis(x="independent")
        .properties(bounds="flush", spacing={"row": 96, "column": GUTTER})
    )
    return faceted


def _points(sweep: Sweep, measure: SweepMeasure) -> Iterator[dict[str, object]]:
    for k, row in sweep.rows:
        if measure.key in row:
            value, error = row[measure.key], sweep.error(row, measure)
            bounds = {"low": value - error, "high": value + error}
            yield {
                "measure": f"{measure.title}|{measure.better}",
                "k": k,
                "value": value,
                "chosen": k == sweep.chosen,
            } | bounds


def quality(measured: Quality, page: Page) -> Chart:
    """HR@10 and NDCG@10 of each segment with their intervals, and the values of all users."""
    names = [segment.name for segment in measured.slices]
    hit_rates = [(segment.hr, *segment.hr_interval) for segment in measured.slices]
    ndcgs = [(segment.ndcg, *segment.ndcg_interval) for segment in measured.slices]
    left, axis = page.room_for(names), names_axis(page, names)
    width = (page.width - left - 60) // 2 if page.is_wide else page.width - left - 24
    overall = measured.overall
    step = page.row_height(names, 26)
    first = _dots("HR@10", names, hit_rates, overall.hr, axis, width, step)
    second = _dots("NDCG@10", names, ndcgs, overall.ndcg, None if page.is_wide else axis, width, step)
    return alt.hconcat(first, second, spacing=28) if page.is_wide else alt.vconcat(first, second, spacing=18)


def _dots(
    title: str,
    names: Sequence[str],
    bounds: Sequence[tuple[float, ...]],
    overall: float,
    axis: alt.Axis | None,
    width: int,
    step: int,
) -> Chart:
    """A dot and an interval for each name, from `bounds` (value, low, high); a dashed line for all users."""
    value, low, high = zip(*bounds, strict=True)
    frame = pl.DataFrame({"name": names, "value": value, "low": low, "high": high})
    base = alt.Chart(frame).encode(y=alt.Y("name:N", sort=None, axis=axis))
    across = alt.Axis(title=None, tickCount=4, format="~r", labelFlush=True)
    layers = [
        alt.Chart(pl.DataFrame({"x": [overall]})).mark_rule(color=INK, strokeDash=[5, 3]).encode(x="x:Q"),
        base.mark_rule(color=ACCENT, strokeWidth=2).encode(x=alt.X("low:Q", axis=across), x2="high:Q"),
        base.mark_point(color=ACCENT, filled=True, size=80, opacity=1).encode(x="value:Q"),
    ]
    heading = alt.Title(title, subtitle=f"dashed: all users, {overall:.3f}")
    return alt.layer(*layers).properties(width=width, height=alt.Step(step), title=heading)


def curves(points: Sequence[Mapping[str, float]], page: Page) -> Chart:
    """Training loss and validation NDCG@10 over epochs."""
    shown = [key for key in _CURVES if any(key in point for point in points)]
    columns = 2 if page.is_wide else 1
    panels = []
    for key in shown:
        rows = [(int(point["epoch"]) + 1, point[key]) for point in points if key in point]
        base = alt.Chart(pl.DataFrame(rows, schema=["epoch", "value"], orient="row")).encode(
            x=alt.X("epoch:Q", axis=whole_axis("epoch", [epoch for epoch, _ in rows]), scale=values_scale(8)),
            y=alt.Y("value:Q", axis=alt.Axis(title=None, tickCount=5, format=".3~r"), scale=values_scale(8)),
        )
        dots = base.mark_point(color=ACCENT, filled=True, size=40, opacity=1)
        lines = base.mark_line(color=ACCENT, strokeWidth=2) + dots
        title = alt.Title(_CURVES[key][0], subtitle=_CURVES[key][1], frame="group")
        panels.append(lines.properties(width=page.panels(columns), height=180, title=title))
    return beside(panels, columns)


def weeks(card: Card) -> Chart:
    """Users of a segment with an event in each week; weeks of too few users are gaps."""
    rows = [{"week": week.start.isoformat(), "users": week.users} for week in card.people.weeks]
    ends = [card.people.weeks[0].start.isoformat(), card.people.weeks[-1].start.isoformat()]
    base = alt.Chart(pl.DataFrame(rows, schema_overrides={"users": pl.Int64}))
    across = alt.Axis(title=None, values=ends, format="%-d %b %Y", labelFlush=True, grid=False, labelOverlap=False)
    area = base.mark_area(color=colour_of(card.profile.segment_id), opacity=0.85, line=False).encode(
        x=alt.X("week:T", axis=across),
        y=alt.Y("users:Q", axis=alt.Axis(title=None, tickCount=2, format="~s", grid=True)),
    )
    chart: Chart = area.properties(width=284, height=64)
    return chart


def rhythm(profile: SegmentProfile, usual: Mapping[str, Sequence[float]], zone: str) -> Chart:
    """Shares of a segment's events by hour and by weekday; dark marks are the shares of all users."""
    hours = alt.Axis(
        title=f"hour, {zone}", labelExpr="datum.value % 6 == 0 ? datum.value : ''", labelAngle=0, ticks=False
    )
    days = alt.Axis(
        title="weekday", labelExpr="slice('MTWTFSS', datum.value, datum.value + 1)", labelAngle=0, ticks=False
    )
    colour = colour_of(profile.segment_id)
    panels = []
    if profile.hours:
        panels.append(_clock(profile.hours, usual.get("hours"), hours, 196, colour))
    if profile.weekdays:
        panels.append(_clock(profile.weekdays, usual.get("weekdays"), days, 92, colour))
    return alt.hconcat(*panels, spacing=18)


def _clock(shares: Sequence[float], usual: Sequence[float] | None, axis: alt.Axis, width: int, colour: str) -> Chart:
    columns: dict[str, Sequence[float | None]] = {
        "place": range(len(shares)),
        "share": shares,
        "usual": list(usual) if usual else [None] * len(shares),
    }
    base = alt.Chart(pl.DataFrame(columns, schema_overrides={"usual": pl.Float64})).encode(
        x=alt.X("place:O", axis=axis)
    )
    bars = base.mark_bar(color=colour).encode(y=alt.Y("share:Q", axis=None))
    ticks = base.mark_tick(color=INK, thickness=2, width=width // len(shares)).encode(y=alt.Y("usual:Q", axis=None))
    both: alt.LayerChart = bars + ticks
    return both.properties(width=width, height=64)


def usual_rhythm(profiles: Sequence[SegmentProfile]) -> dict[str, list[float]]:
    """Shares of events by hour and weekday over all segments, weighted by events; unknown ones are left out."""
    events = np.array([p.user_count * p.activity.mean_events if p.activity else 0.0 for p in profiles])
    usual = {}
    for name in ("hours", "weekdays"):
        shares = [getattr(profile, name) for profile in profiles]
        if all(shares) and events.all() and len(events):
            usual[name] = np.average(np.array(shares), axis=0, weights=events).tolist()
    return usual
