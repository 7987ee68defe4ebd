"""Segment profiles of a release, and the migration from the segments of the previous release."""

from typing import Self

from pydantic import Field

from server.core.frozen_model import FrozenModel


class Trait(FrozenModel):
    """A behaviour that is more frequent in a segment than in the population; see the API's `Trait`."""

    kind: str
    name: str
    share: float = Field(ge=0, le=1)
    lift: float = Field(ge=0)
    lift_low: float = Field(default=0, ge=0)
    user_count: int = Field(default=0, ge=0)


class SegmentItem(FrozenModel):
    """An item that users of a segment choose; see the API's `SegmentItem`."""

    item_id: str
    user_share: float = Field(ge=0, le=1)
    lift: float = Field(ge=0)
    lift_low: float = Field(ge=0)


class Activity(FrozenModel):
    """How active the users of a segment are; see the API's `Activity`."""

    mean_events: float = Field(ge=0)
    median_events: float = Field(ge=0)
    mean_active_days: float = Field(ge=0)
    mean_days_since_last: float = Field(ge=0)


class ActionShare(FrozenModel):
    """Share of an action in the events of a segment, and its lift over the population."""

    action: str
    share: float = Field(ge=0, le=1)
    lift: float = Field(ge=0)


class Spend(FrozenModel):
    """Values of the events of a segment, in the unit of the log."""

    mean_value: float
    mean_total: float
    median_total: float


class SegmentRecord(FrozenModel):
    """Size of a segment in one release."""

    release: int = Field(ge=1)
    user_count: int = Field(ge=0)
    share: float = Field(ge=0, le=1)


class SegmentProfile(FrozenModel):
    """A segment; see the API's `SegmentProfile` for units."""

    segment_id: int = Field(ge=1)
    label: str
    user_count: int = Field(ge=0)
    share: float = Field(ge=0, le=1)
    traits: tuple[Trait, ...] = ()
    top_items: tuple[SegmentItem, ...] = ()
    particular_items: tuple[SegmentItem, ...] = ()
    mean_distance: float = Field(ge=0)
    silhouette: float = Field(ge=-1, le=1)
    history: tuple[SegmentRecord, ...] = ()
    description: str = ""
    growth: float | None = None
    activity: Activity | None = None
    actions: tuple[ActionShare, ...] = ()
    hours: tuple[float, ...] = ()
    weekdays: tuple[float, ...] = ()
    spend: Spend | None = None


class Flow(FrozenModel):
    """Users who moved from one segment to another; see the API's `SegmentFlow`."""

    from_segment_id: int = Field(ge=0)
    to_segment_id: int = Field(ge=1)
    user_count: int = Field(ge=1)
    share: float = Field(ge=0, le=1)


class Change(FrozenModel):
    """A split or a merge; see the API's `SegmentChange`."""

    from_segment_ids: tuple[int, ...]
    to_segment_ids: tuple[int, ...]

    def touches(self, segment_id: int) -> bool:
        return segment_id in self.from_segment_ids or segment_id in self.to_segment_ids


class Migration(FrozenModel):
    """How users moved between the segments of the previous release and this one; see the API's `Migration`."""

    previous_release: int = Field(ge=1)
    user_count: int = Field(ge=0)
    flows: tuple[Flow, ...] = ()
    born_segment_ids: tuple[int, ...] = ()
    retired_segment_ids: tuple[int, ...] = ()
    splits: tuple[Change, ...] = ()
    merges: tuple[Change, ...] = ()

    def touching(self, segment_id: int) -> Self:
        """Only the entries of one segment, which may belong to this release or to the previous one."""
        flows = (flow for flow in self.flows if segment_id in (flow.from_segment_id, flow.to_segment_id))
        return self.model_copy(
            update={
                "flows": tuple(flows),
                "born_segment_ids": tuple(born for born in self.born_segment_ids if born == segment_id),
                "retired_segment_ids": tuple(gone for gone in self.retired_segment_ids if gone == segment_id),
                "splits": tuple(change for change in self.splits if change.touches(segment_id)),
                "merges": tuple(change for change in self.merges if change.touches(segment_id)),
            }
        )
