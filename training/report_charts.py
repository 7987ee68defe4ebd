"""The pictures of a report, drawn by Vega-Altair: each for a wide page and for a phone.

Every segment has a colour and a shape of its own and is named by its number, so that no picture needs its colours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.profiles import SegmentProfile
from training.report_content import Card, Content, Moves, Quality, Slice, UserMap
from training.report_flows import ELSEWHERE, Node, alluvial
from training.report_sweep import Measure, Sweep
from training.report_words import count, percent

INK, QUIET, LINE = "#1c1f24", "#565d68", "#d9dde3"
ACCENT = "#0072b2"
COLOURS = ("#0072b2", "#d55e00", "#00805e", "#a03e99", "#8a6a00", "#3d3d3d", "#1e86b8", "#c2185b")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
"""Seven shapes and eight colours give 56 pairs, which ids take in turn."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Noto Sans', sans-serif"

_FEWER = 1_500
"""Users on a phone's map."""

Chart = alt.Chart | alt.LayerChart | alt.HConcatChart | alt.VConcatChart | alt.ConcatChart


@dataclass(frozen=True, slots=True)
class Page:
    """What a picture is drawn for: pixels across, and those that names of segments may take."""

    width: int
    names: int

    @property
    def is_wide(self) -> bool:
        """Not a phone."""
        return self.width > 500


WIDE, NARROW = Page(920, 220), Page(330, 118)


def colour_of(segment_id: int) -> str:
    """The same in every release."""
    return COLOURS[(segment_id - 1) % len(COLOURS)]


def shape_of(segment_id: int) -> str:
    """The same in every release."""
    return SHAPES[(segment_id - 1) % len(SHAPES)]


def styled(chart: Chart) -> Chart:
    """The look that all pictures share."""
    return (
        chart.configure(font=FONT, background="white", padding=4, aria=False)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=INK,
            titleColor=QUIET,
            gridColor=LINE,
            domainColor=LINE,
            tickColor=LINE,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            labelPadding=5,
            titlePadding=8,
        )
        .configure_legend(labelColor=INK, labelFontSize=12, symbolSize=90, symbolStrokeWidth=0, symbolOpacity=1)
        .configure_title(color=INK, fontSize=13, fontWeight="bold", anchor="start", subtitleColor=QUIET)
        .configure_text(color=INK, fontSize=12)
    )


def sizes(cards: Sequence[Card], previous: Sequence[SegmentProfile], page: Page) -> Chart:
    """Bars of users by segment, and where the release before had them."""
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
    most = max([card.profile.share for card in cards] + list(before.values()))
    room = 1.22 if page.is_wide else 1.75  # right of the longest bar, for its text
    base = alt.Chart(pl.DataFrame(rows, schema_overrides={"before": pl.Float64})).encode(
        y=alt.Y("name:N", sort=None, axis=_names(page)),
        x=alt.X("share:Q", scale=alt.Scale(domain=[0, most * room]), axis=None),
    )
    bars = base.mark_bar(height=18, cornerRadiusEnd=2).encode(color=alt.Color("colour:N", scale=None))
    texts = base.mark_text(align="left", dx=8).encode(
        text="text:N", x=alt.datum(0) if not rows else alt.X("end:Q", scale=alt.Scale(domain=[0, most * room]))
    )
    texts = texts.transform_calculate(end="max(datum.share, isValid(datum.before) ? datum.before : 0)")
    ticks = base.mark_tick(color=INK, thickness=3, height=26).encode(x="before:Q")
    return (bars + ticks + texts).properties(width=page.width - page.names - 20, height=alt.Step(30))


def users_map(found: UserMap, cards: Sequence[Card], page: Page) -> Chart:
    """Users as points on two principal axes, with the number of each segment in its middle."""
    step = 1 if page.is_wide else max(1, len(found.points) // _FEWER)
    names = {card.profile.segment_id: card.name for card in cards}
    frame = pl.DataFrame({"x": found.points[::step, 0], "y": found.points[::step, 1], "id": found.segment_ids[::step]})
    frame = frame.with_columns(pl.col("id").replace_strict(names, return_dtype=pl.String).alias("segment"))
    width, height = page.width - 20, 520 if page.is_wide else 330
    domain = list(names.values())
    legend = alt.Legend(
        title=None, orient="bottom", columns=3 if page.is_wide else 1, labelLimit=width // (3 if page.is_wide else 1) - 40
    )
    scales = {
        "color": alt.Scale(domain=domain, range=[colour_of(number) for number in names]),
        "shape": alt.Scale(domain=domain, range=[shape_of(number) for number in names]),
    }
    axes = {name: alt.Axis(labels=False, ticks=False, grid=False, domain=False, title=None) for name in "xy"}
    points = (
        alt.Chart(frame)
        .mark_point(filled=True, opacity=0.55, size=34 if page.is_wide else 22)
        .encode(
            x=alt.X("x:Q", axis=axes["x"], scale=alt.Scale(zero=False, nice=False, padding=8)),
            y=alt.Y("y:Q", axis=axes["y"], scale=alt.Scale(zero=False, nice=False, padding=8)),
            color=alt.Color("segment:N", scale=scales["color"], legend=legend),
            shape=alt.Shape("segment:N", scale=scales["shape"], legend=legend),
        )
    )
    labels = alt.Chart(middles(found, width, height)).encode(x="x:Q", y="y:Q", text="text:N")
    halo = labels.mark_text(fontSize=19, fontWeight="bold", stroke="white", strokeWidth=6, strokeJoin="round")
    numbers = labels.mark_text(fontSize=19, fontWeight="bold", color=INK)
    return (points + halo + numbers).properties(width=width, height=height)


def middles(found: UserMap, width: float, height: float) -> pl.DataFrame:
    """Where the numbers of segments stand: `text`, `x`, `y`. Those that would cover each other are pushed apart."""
    if not len(found.points):
        return pl.DataFrame({"text": [], "x": [], "y": []}, schema={"text": pl.String, "x": pl.Float64, "y": pl.Float64})
    ids = np.unique(found.segment_ids)
    places = np.array([np.median(found.points[found.segment_ids == number], axis=0) for number in ids])
    low, span = found.points.min(0), np.ptp(found.points, axis=0)
    pixels = np.where(span > 0, span, 1.0) / np.array([width, height])
    places = low + pushed_apart((places - low) / pixels, 26.0) * pixels
    return pl.DataFrame({"text": ids.astype(str), "x": places[:, 0], "y": places[:, 1]})


def pushed_apart(places: NDArray[np.float64], least: float, rounds: int = 100) -> NDArray[np.float64]:
    """Points (N, 2) moved, as little as a few `rounds` can, until no two are nearer than `least`."""
    moved = places + np.linspace(0, 1e-6, places.size).reshape(places.shape)  # equal points have no direction to go
    for _ in range(rounds):
        offset = moved[:, None] - moved[None]
        distance = np.linalg.norm(offset, axis=2)
        short = np.where((distance < least) & (distance > 0), least - distance, 0.0)
        if not short.any():
            break
        moved = moved + (offset / np.where(distance > 0, distance, 1.0)[..., None] * short[..., None] / 2).sum(1)
    return moved


def k_sweep(sweep: Sweep, page: Page) -> Chart:
    """A panel for each figure over k, with the chosen k marked."""
    columns = 3 if page.is_wide else 1
    width = (page.width - 60 * columns) // columns
    panels = [_panel(sweep, measure, width) for measure in sweep.measures()]
    return alt.concat(*panels, columns=columns, spacing={"row": 22, "column": 24})


def _panel(sweep: Sweep, measure: Measure, width: int) -> Chart:
    rows = [
        {"k": k, "value": row[measure.key], "error": sweep.error(row, measure), "chosen": k == sweep.chosen}
        for k, row in sweep.rows
        if measure.key in row
    ]
    frame = pl.DataFrame(rows).with_columns(
        (pl.col("value") - pl.col("error")).alias("low"), (pl.col("value") + pl.col("error")).alias("high")
    )
    whole = alt.Axis(title="k", tickMinStep=1, format="d", grid=False)
    across = alt.X("k:Q", axis=whole, scale=alt.Scale(zero=False, nice=False, padding=10))
    up = alt.Axis(title=None, tickCount=4, format="~s" if frame["value"].max() >= 1000 else "~g")  # type: ignore[operator]
    base = alt.Chart(frame).encode(x=across)
    high = alt.Y("value:Q", axis=up, scale=alt.Scale(zero=False))
    layers = [
        base.mark_rule(color=QUIET, strokeDash=[4, 3]).transform_filter("datum.chosen").encode(x=across),
        base.mark_line(color=ACCENT, strokeWidth=2).encode(y=high),
        base.mark_point(color=ACCENT, filled=True, size=36, opacity=1).encode(y=high),
        base.mark_point(color=INK, filled=False, size=150, strokeWidth=2).transform_filter("datum.chosen").encode(y=high),
    ]
    if frame["error"].max():
        layers.insert(1, base.mark_rule(color=ACCENT, opacity=0.6).encode(y=alt.Y("low:Q", title=None), y2="high:Q"))
    title = alt.Title(measure.title, subtitle=measure.better)
    return alt.layer(*layers).properties(width=width, height=130, title=title)


def moves(found: Moves, cards: Sequence[Card], page: Page) -> Chart:
    """Bands of users from the segments of the release before to those of this one."""
    order = [card.profile.segment_id for card in cards]
    layout = alluvial(found.migration.flows, order, body=max(260.0, 24.0 * len(order)), gap=18.0)
    margin = page.names + 40 if page.is_wide else 74
    width = page.width - 2 * margin
    height = alt.Scale(domain=[layout.height, 0], nice=False)
    across = alt.Scale(domain=[-margin / width, 1 + margin / width], nice=False)
    x, y = alt.X("x:Q", scale=across, axis=None), alt.Y("y:Q", scale=height, axis=None)
    bands = [
        {"band": index, "x": x_, "y": upper, "y2": lower, "colour": colour_of(band.flow.to_segment_id)}
        for index, band in enumerate(layout.bands)
        for x_, upper, lower in zip(band.x, band.upper, band.lower, strict=True)
    ]
    areas = (
        alt.Chart(pl.DataFrame(bands))
        .mark_area(opacity=0.4, line=False)
        .encode(x=x, y=y, y2="y2:Q", detail="band:N", color=alt.Color("colour:N", scale=None))
    )
    thick = 12 / width
    before = {profile.segment_id: profile.label for profile in found.previous}
    now = {card.profile.segment_id: card.profile.label for card in cards}
    nodes = [_bar(node, before, -thick, page) for node in layout.left] + [_bar(node, now, 1, page) for node in layout.right]
    base = alt.Chart(pl.DataFrame(nodes))
    bars = base.mark_rect(opacity=1).encode(
        x=x, x2="x2:Q", y=y, y2="y2:Q", color=alt.Color("colour:N", scale=None)
    )
    base = base.transform_calculate(middle="(datum.y + datum.y2) / 2")
    middle = alt.Y("middle:Q", scale=height, axis=None)
    text = {"baseline": "middle", "limit": margin - 24}
    left = base.mark_text(align="right", dx=-6, **text).transform_filter("datum.x < 0")
    right = base.mark_text(align="left", dx=6, **text).transform_filter("datum.x > 0")
    texts = left.encode(x=x, y=middle, text="text:N") + right.encode(x=alt.X("x2:Q", scale=across), y=middle, text="text:N")
    return alt.layer(areas, bars, texts).properties(width=page.width - 8, height=layout.height)


def _bar(node: Node, labels: Mapping[int, str], x: float, page: Page) -> dict[str, object]:
    elsewhere = node.segment_id == ELSEWHERE
    name = f"{node.segment_id} {labels.get(node.segment_id, '')}".strip() if page.is_wide else str(node.segment_id)
    text = f"{'New or too few' if elsewhere and page.is_wide else 'New' if elsewhere else name} · {count(node.users)}"
    thick = 12 / (page.width - 2 * (page.names + 40 if page.is_wide else 74))
    colour = "#8b929c" if elsewhere else colour_of(node.segment_id)
    return {"x": x, "x2": x + thick, "y": node.top, "y2": node.bottom, "text": text, "colour": colour}


def quality(found: Quality, page: Page) -> Chart:
    """HR@10 and NDCG@10 of each segment with their intervals, beside all users."""
    width = (page.width - page.names - 60) // 2 if page.is_wide else page.width - page.names - 24
    hits = _dots(found, "HR@10", found.overall.figures["hr@10"], width, page, True)
    gains = _dots(found, "NDCG@10", found.overall.figures["ndcg@10"], width, page, not page.is_wide)
    return alt.hconcat(hits, gains, spacing=24) if page.is_wide else alt.vconcat(hits, gains, spacing=18)


def _dots(found: Quality, title: str, overall: float, width: int, page: Page, with_names: bool) -> Chart:
    def bounds(one: Slice) -> tuple[float, float, float]:
        return (one.hr, *one.hr_interval) if title == "HR@10" else (one.ndcg, *one.ndcg_interval)

    columns = ("value", "low", "high")
    rows = [{"name": one.name, **dict(zip(columns, bounds(one), strict=True))} for one in found.slices]
    axis = _names(page) if with_names else None
    base = alt.Chart(pl.DataFrame(rows)).encode(y=alt.Y("name:N", sort=None, axis=axis))
    across = alt.Axis(title=None, tickCount=4, format="~g")
    layers = [
        alt.Chart(pl.DataFrame({"x": [overall]})).mark_rule(color=INK, strokeDash=[5, 3]).encode(x="x:Q"),
        base.mark_rule(color=ACCENT, strokeWidth=2).encode(x=alt.X("low:Q", axis=across), x2="high:Q"),
        base.mark_point(color=ACCENT, filled=True, size=80, opacity=1).encode(x="value:Q"),
    ]
    subtitle = f"dashed: all users, {overall:.3f}"
    return alt.layer(*layers).properties(width=width, height=alt.Step(26), title=alt.Title(title, subtitle=subtitle))


def curves(points: Sequence[Mapping[str, float]], page: Page) -> Chart:
    """The loss and what validation says, over epochs."""
    titles = {"loss": ("Training loss", "smaller is better"), "ndcg@10": ("NDCG@10 on validation", "larger is better")}
    shown = [key for key in titles if any(key in point for point in points)]
    columns = 2 if page.is_wide else 1
    width = (page.width - 64 * columns) // columns
    panels = []
    for key in shown:
        frame = pl.DataFrame(
            {"epoch": [int(p["epoch"]) + 1 for p in points if key in p], "value": [p[key] for p in points if key in p]}
        )
        base = alt.Chart(frame).encode(
            x=alt.X("epoch:Q", axis=alt.Axis(title="epoch", tickMinStep=1, format="d", grid=False), scale=alt.Scale(zero=False, nice=False, padding=8)),
            y=alt.Y("value:Q", axis=alt.Axis(title=None, tickCount=5, format="~g"), scale=alt.Scale(zero=False)),
        )
        lines = base.mark_line(color=ACCENT, strokeWidth=2) + base.mark_point(color=ACCENT, filled=True, size=40, opacity=1)
        panels.append(lines.properties(width=width, height=180, title=alt.Title(titles[key][0], subtitle=titles[key][1])))
    return alt.concat(*panels, columns=columns, spacing=24)


def rhythm(profile: SegmentProfile, everyone: Mapping[str, Sequence[float]]) -> Chart:
    """A segment's events by hour and by weekday; a dark tick is all users'."""
    panels = []
    for name, shares, width in (("hours", profile.hours, 206), ("weekdays", profile.weekdays, 84)):
        if not shares:
            continue
        usual = everyone.get(name) or [None] * len(shares)
        places = list(range(len(shares)))
        frame = pl.DataFrame({"place": places, "share": shares, "usual": usual}, schema_overrides={"usual": pl.Float64})
        labels = "datum.value % 6 == 0 ? datum.value : ''" if name == "hours" else "slice('MTWTFSS', datum.value, datum.value + 1)"
        axis = alt.Axis(title="hour, UTC" if name == "hours" else "weekday", labelExpr=labels, labelAngle=0, ticks=False)
        base = alt.Chart(frame).encode(x=alt.X("place:O", axis=axis))
        bars = base.mark_bar(color=colour_of(profile.segment_id)).encode(y=alt.Y("share:Q", axis=None))
        ticks = base.mark_tick(color=INK, thickness=2, width=width // len(shares)).encode(y="usual:Q")
        panels.append((bars + ticks).properties(width=width, height=64))
    return alt.hconcat(*panels, spacing=18)


def usual_rhythm(profiles: Sequence[SegmentProfile]) -> dict[str, list[float]]:
    """Hours and weekdays of all shown segments together, each weighed by its events; empty where they are not known."""
    found = {}
    for name in ("hours", "weekdays"):
        known = [(getattr(p, name), p.user_count * p.activity.mean_events) for p in profiles if getattr(p, name) and p.activity]
        if known and len(known) == len(profiles) and sum(weight for _, weight in known) > 0:
            shares, weights = zip(*known, strict=True)
            found[name] = np.average(np.array(shares), axis=0, weights=weights).tolist()
    return found


def _names(page: Page) -> alt.Axis:
    """Names of segments left of their rows."""
    return alt.Axis(title=None, labelLimit=page.names, ticks=False, domain=False, grid=False, minExtent=page.names)
