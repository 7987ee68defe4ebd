"""Core values → messages."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from segrec.v1 import common_pb2, model_service_pb2, segrec_service_pb2

from server.core.history import Event
from server.core.ranking import Ranked, Reason
from server.core.release import Release, SegmentProfile
from server.pipeline import Answer, Degraded
from server.releases import State, Status

TOP_ITEMS = 20
"""How many of a segment's items its profile shows."""

_REASONS = {
    Reason.PERSONAL: segrec_service_pb2.ITEM_REASON_PERSONAL,
    Reason.SEGMENT: segrec_service_pb2.ITEM_REASON_SEGMENT,
    Reason.PERSONAL_AND_SEGMENT: segrec_service_pb2.ITEM_REASON_PERSONAL_AND_SEGMENT,
    Reason.POPULAR: segrec_service_pb2.ITEM_REASON_POPULAR,
}
_DEGRADED = {
    Degraded.STALE_EMBEDDING: common_pb2.DEGRADED_REASON_STALE_EMBEDDING,
    Degraded.ENCODER_UNAVAILABLE: common_pb2.DEGRADED_REASON_ENCODER_UNAVAILABLE,
    Degraded.STORE_UNAVAILABLE: common_pb2.DEGRADED_REASON_STORE_UNAVAILABLE,
}
_STATES = {
    State.AVAILABLE: model_service_pb2.RELEASE_STATE_AVAILABLE,
    State.LOADING: model_service_pb2.RELEASE_STATE_LOADING,
    State.ACTIVE: model_service_pb2.RELEASE_STATE_ACTIVE,
    State.STANDBY: model_service_pb2.RELEASE_STATE_STANDBY,
    State.FAILED: model_service_pb2.RELEASE_STATE_FAILED,
}


def info_of(release: Release, answer: Answer) -> common_pb2.AnswerInfo:
    """What the answer was made from."""
    embedded = answer.embedded
    if answer.degraded is Degraded.NO:
        return common_pb2.AnswerInfo(
            release=release.number,
            history_event_count=embedded.used_count,
            ignored_event_count=embedded.ignored_count,
        )
    return common_pb2.AnswerInfo(
        release=release.number,
        history_event_count=embedded.used_count,
        ignored_event_count=embedded.ignored_count,
        degraded=True,
        degraded_reason=_DEGRADED[answer.degraded],
    )


def assignment_of(release: Release, answer: Answer) -> segrec_service_pb2.SegmentAssignment:
    """The user's place among the segments."""
    embedded = answer.embedded
    if embedded.embedding is None:
        known = answer.degraded is Degraded.NO
        state = segrec_service_pb2.SEGMENT_STATE_NO_HISTORY if known else segrec_service_pb2.SEGMENT_STATE_UNAVAILABLE
        return segrec_service_pb2.SegmentAssignment(state=state)
    segment = release.segments[embedded.segment_index]
    return segrec_service_pb2.SegmentAssignment(
        state=segrec_service_pb2.SEGMENT_STATE_ASSIGNED,
        segment_id=segment.segment_id,
        label=segment.label,
        distance=embedded.distance,
        runner_up_segment_id=release.segments[embedded.runner_up_index].segment_id,
        runner_up_distance=embedded.runner_up_distance,
    )


def segment_response(release: Release, answer: Answer) -> segrec_service_pb2.SegmentResponse:
    """The answer to Segment, and of a row of StreamSegment."""
    return segrec_service_pb2.SegmentResponse(assignment=assignment_of(release, answer), info=info_of(release, answer))


def recommend_response(
    release: Release, answer: Answer, ranked: Sequence[Ranked]
) -> segrec_service_pb2.RecommendResponse:
    """The answer to Recommend, and of a row of StreamRecommend."""
    items = [
        segrec_service_pb2.RecommendedItem(
            item_id=release.item_ids[item.row],
            title=release.titles[item.row],
            score=item.score,
            reason=_REASONS[item.reason],
            seen=item.seen,
        )
        for item in ranked
    ]
    return segrec_service_pb2.RecommendResponse(
        items=items, assignment=assignment_of(release, answer), info=info_of(release, answer)
    )


def profile_of(release: Release, segment: SegmentProfile) -> segrec_service_pb2.SegmentProfile:
    """A segment."""
    return segrec_service_pb2.SegmentProfile(
        segment_id=segment.segment_id,
        label=segment.label,
        user_count=segment.user_count,
        share=segment.share,
        traits=[segrec_service_pb2.Trait(**trait.model_dump()) for trait in segment.traits],
        top_items=_top_items(release, segment.segment_id),
        mean_distance=segment.mean_distance,
        silhouette=segment.silhouette,
        history=[segrec_service_pb2.SegmentRecord(**record.model_dump()) for record in segment.history],
    )


def _top_items(release: Release, segment_id: int) -> list[segrec_service_pb2.SegmentItem]:
    items = release.segment_items.get(segment_id)
    if items is None:
        return []
    columns = zip(items.item_index[:TOP_ITEMS].tolist(), items.score.tolist(), items.lift.tolist(), strict=False)
    return [
        segrec_service_pb2.SegmentItem(
            item_id=release.item_ids[index - 1], title=release.titles[index - 1], score=score, lift=lift
        )
        for index, score, lift in columns
    ]


def event_message(event: Event) -> common_pb2.Event:
    """A stored event."""
    seconds, milliseconds = divmod(event.timestamp, 1000)
    message = common_pb2.Event(
        item_id=event.item_id,
        action=event.action,
        timestamp=Timestamp(seconds=seconds, nanos=milliseconds * 1_000_000),
    )
    if not math.isnan(event.value):
        message.value = event.value
    return message


def release_message(status: Status) -> model_service_pb2.Release:
    """A release and its state."""
    message = model_service_pb2.Release(release=status.number, state=_STATES[status.state], failure=status.failure)
    manifest = status.manifest
    if manifest is None:
        return message
    message.created_time.CopyFrom(_timestamp(manifest.created_time))
    if manifest.data_cutoff_time is not None:
        message.data_cutoff_time.CopyFrom(_timestamp(manifest.data_cutoff_time))
    message.parent_release = manifest.parent_release
    message.embedding_dim = manifest.embedding_dim
    message.max_length = manifest.max_length
    message.item_count = manifest.item_count
    message.segment_count = manifest.segment_count
    message.figures.update(manifest.figures)
    return message


def _timestamp(time: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(time.astimezone(UTC))
    return message
