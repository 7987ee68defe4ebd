"""What a release tells of its segments: profiles, and what became of the segments of the release before."""

from typing import Self

from pydantic import Field

from server.core.frozen_model import FrozenModel


class Trait(FrozenModel):
    """Something that a segment does more than everyone else; see the API's `Trait`."""

    kind: str
    name: str
    share: float = Field(ge=0, le=1)
    lift: float = Field(ge=0)
    lift_low: float = Field(default=0, ge=0)
    user_count: int = Field(default=0, ge=0)


class Activity(FrozenModel):
    """How much a segment's users do; see the API's `Activity`."""

    mean_events: float = Field(ge=0)
    median_events: float = Field(ge=0)
    mean_active_days: float = Field(ge=0)
    mean_days_since_last: float = Field(ge=0)


class ActionShare(FrozenModel):
    """An action and how often a segment does it."""

    action: str
    share: float = Field(ge=0, le=1)
    lift: float = Field(ge=0)


class Spend(FrozenModel):
    """Values of a segment's events, in the log's own unit."""

    mean_value: float
    mean_total: float
    median_total: float


class SegmentRecord(FrozenModel):
    """What a segment was in one release."""

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
    """Users who went from one segment to another; see the API's `SegmentFlow`."""

    from_segment_id: int = Field(ge=0)
    to_segment_id: int = Field(ge=1)
    user_count: int = Field(ge=1)
    share: float = Field(ge=0, le=1)


class Change(FrozenModel):
    """A split or a merge; see the API's `SegmentChange`."""

    from_segment_ids: tuple[int, ...]
    to_segment_ids: tuple[int, ...]

    def touches(self, segment_id: int) -> bool:
        """Whether the segment is one of those before or now."""
        return segment_id in self.from_segment_ids or segment_id in self.to_segment_ids


class Migration(FrozenModel):
    """What became of the segments of the release before; see the API's `Migration`."""

    previous_release: int = Field(ge=1)
    user_count: int = Field(ge=0)
    flows: tuple[Flow, ...] = ()
    born_segment_ids: tuple[int, ...] = ()
    retired_segment_ids: tuple[int, ...] = ()
    splits: tuple[Change, ...] = ()
    merges: tuple[Change, ...] = ()

    def touching(self, segment_id: int) -> Self:
        """The part that tells of one segment, whether of this release or of the one before."""
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
