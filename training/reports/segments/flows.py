"""The layout of an alluvial chart: bands of users from the segments of one release to those of the next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.core.profiles import Flow

ELSEWHERE = 0
"""Segment id of the left bar for users new to the release and for flows that are too small to be shown."""

_STEPS = 33


@dataclass(frozen=True, slots=True)
class Node:
    """A segment on one side, as a bar from `top` to `bottom`; y grows downwards, in pixels."""

    segment_id: int
    users: int
    top: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Band:
    """A flow of users: `x` (S,) from 0 to 1, and its edges `upper` and `lower` (S,) in pixels."""

    flow: Flow
    x: NDArray[np.float64]
    upper: NDArray[np.float64]
    lower: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Alluvial:
    """Bars of both sides and the bands between them, within `height` pixels."""

    left: tuple[Node, ...]
    right: tuple[Node, ...]
    bands: tuple[Band, ...]
    height: float


def alluvial(flows: Sequence[Flow], order: Sequence[int], body: float, gap: float) -> Alluvial:
    """Lay out at least one flow. Segments on the right are in `order`.

    Segments on the left are sorted by where their users go, so that few bands cross. All bars together are `body`
    pixels high, with `gap` pixels between two bars.
    """
    rights = [number for number in order if any(flow.to_segment_id == number for flow in flows)]
    place = {number: index for index, number in enumerate(rights)}
    shown = [flow for flow in flows if flow.to_segment_id in place]
    lefts = sorted({flow.from_segment_id for flow in shown}, key=lambda number: _middle(number, shown, place))
    pixels = body / sum(flow.user_count for flow in shown)
    height = body + gap * (max(len(lefts), len(rights)) - 1)
    left = _side(lefts, [flow.from_segment_id for flow in shown], shown, pixels, gap, height)
    right = _side(rights, [flow.to_segment_id for flow in shown], shown, pixels, gap, height)
    by_left = {number: index for index, number in enumerate(lefts)}
    ordered = sorted(shown, key=lambda flow: (by_left[flow.from_segment_id], place[flow.to_segment_id]))
    return Alluvial(left, right, _bands(ordered, left, right, pixels), height)


def _middle(number: int, flows: Sequence[Flow], place: Mapping[int, int]) -> tuple[bool, float, int]:
    """The sort key of a left segment: the mean place of its users on the right; `ELSEWHERE` comes last."""
    targets = [(flow.user_count, place[flow.to_segment_id]) for flow in flows if flow.from_segment_id == number]
    mean = sum(users * index for users, index in targets) / sum(users for users, _ in targets)
    return number == ELSEWHERE, mean, number


def _side(
    order: Sequence[int], ends: Sequence[int], flows: Sequence[Flow], pixels: float, gap: float, height: float
) -> tuple[Node, ...]:
    """Bars one below the other, centred in `height`. `ends` is the segment of each flow on this side."""
    users = {number: sum(f.user_count for end, f in zip(ends, flows, strict=True) if end == number) for number in order}
    total = sum(users.values()) * pixels + gap * (len(order) - 1)
    top, nodes = (height - total) / 2, []
    for number in order:
        bottom = top + users[number] * pixels
        nodes.append(Node(number, users[number], top, bottom))
        top = bottom + gap
    return tuple(nodes)


def _bands(flows: Sequence[Flow], left: Sequence[Node], right: Sequence[Node], pixels: float) -> tuple[Band, ...]:
    """Bands between the bars, curved by smoothstep. `flows` must be sorted by left side, then by right side."""
    starts = {node.segment_id: node.top for node in left}
    ends = {node.segment_id: node.top for node in right}
    x = np.linspace(0.0, 1.0, _STEPS)
    bend = x * x * (3 - 2 * x)
    bands = []
    for flow in flows:
        start, end, thick = starts[flow.from_segment_id], ends[flow.to_segment_id], flow.user_count * pixels
        upper = start + (end - start) * bend
        bands.append(Band(flow, x, upper, upper + thick))
        starts[flow.from_segment_id] += thick
        ends[flow.to_segment_id] += thick
    return tuple(bands)
