"""Converts core values to messages of the API."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from segrec.v1 import common_pb2, model_service_pb2, segrec_service_pb2

from server.core.history import Event
from server.core.profiles import Flow, Migration, SegmentItem, SegmentProfile, Trait
from server.core.ranking.query import Part, Ranking, Strategy
from server.core.release import Release, TrainedOn
from server.monitoring.release_stats import Figures
from server.releases.registry import State, Status
from server.serving.answer import Answer, Degraded

ITEM_REASONS = {
    Part.OWN_HISTORY: segrec_service_pb2.ITEM_REASON_AGAIN,
    Part.ENCODER: segrec_service_pb2.ITEM_REASON_PERSONAL,
    Part.SEGMENT: segrec_service_pb2.ITEM_REASON_SEGMENT,
    Part.POPULARITY: segrec_service_pb2.ITEM_REASON_POPULAR,
    Part.TREND: segrec_service_pb2.ITEM_REASON_TREND,
    Part.RULE: segrec_service_pb2.ITEM_REASON_RULE,
}
_PARTS = {
    Part.OWN_HISTORY: segrec_service_pb2.SCORE_PART_OWN_HISTORY,
    Part.ENCODER: segrec_service_pb2.SCORE_PART_ENCODER,
    Part.SEGMENT: segrec_service_pb2.SCORE_PART_SEGMENT,
    Part.POPULARITY: segrec_service_pb2.SCORE_PART_POPULARITY,
    Part.TREND: segrec_service_pb2.SCORE_PART_TREND,
    Part.RULE: segrec_service_pb2.SCORE_PART_RULE,
}
_STRATEGIES = {
    Strategy.HYBRID: segrec_service_pb2.STRATEGY_HYBRID,
    Strategy.PERSONAL: segrec_service_pb2.STRATEGY_PERSONAL,
    Strategy.SEGMENT: segrec_service_pb2.STRATEGY_SEGMENT,
    Strategy.POPULAR: segrec_service_pb2.STRATEGY_POPULAR,
}
_DEGRADED = {
    Degraded.STALE_EMBEDDING: common_pb2.DEGRADED_REASON_STALE_EMBEDDING,
    Degraded.ENCODER_UNAVAILABLE: common_pb2.DEGRADED_REASON_ENCODER_UNAVAILABLE,
    Degraded.STORE_UNAVAILABLE: common_pb2.DEGRADED_REASON_STORE_UNAVAILABLE,
    Degraded.NOT_EXPLAINED: common_pb2.DEGRADED_REASON_NOT_EXPLAINED,
}
_TRAIT_KINDS = {
    "category": segrec_service_pb2.TRAIT_KIND_CATEGORY,
    "item": segrec_service_pb2.TRAIT_KIND_ITEM,
    "action": segrec_service_pb2.TRAIT_KIND_ACTION,
    "time": segrec_service_pb2.TRAIT_KIND_TIME,
}
_STATES = {
    State.AVAILABLE: model_service_pb2.RELEASE_STATE_AVAILABLE,
    State.LOADING: model_service_pb2.RELEASE_STATE_LOADING,
    State.ACTIVE: model_service_pb2.RELEASE_STATE_ACTIVE,
    State.STANDBY: model_service_pb2.RELEASE_STATE_STANDBY,
    State.FAILED: model_service_pb2.RELEASE_STATE_FAILED,
    State.CANARY: model_service_pb2.RELEASE_STATE_CANARY,
    State.SHADOW: model_service_pb2.RELEASE_STATE_SHADOW,
}


def _fill_info(info: common_pb2.AnswerInfo, release: Release, answer: Answer) -> None:
    """Fill the release, the history's size and the degradation.

    Setting fields in place takes a quarter of the time of building a message and copying it.
    """
    info.release = release.number
    info.history_event_count = answer.embedded.used_count
    info.ignored_event_count = answer.embedded.ignored_count
    if answer.degraded is not Degraded.NO:
        info.degraded = True
        info.degraded_reason = _degraded_reason(answer)


def _degraded_reason(answer: Answer) -> common_pb2.DegradedReason:
    if answer.degraded is not Degraded.RELEASE_NOT_LOADED:
        return _DEGRADED[answer.degraded]
    is_stale = answer.embedded.embedding is not None
    return _DEGRADED[Degraded.STALE_EMBEDDING if is_stale else Degraded.ENCODER_UNAVAILABLE]


def segment_state(answer: Answer) -> segrec_service_pb2.SegmentState:
    """Whether the user has a segment, and why not."""
    if answer.embedded.embedding is not None:
        is_confident = answer.embedded.is_confident
        return (
            segrec_service_pb2.SEGMENT_STATE_ASSIGNED
            if is_confident
            else segrec_service_pb2.SEGMENT_STATE_NO_CONFIDENT_SEGMENT
        )
    if answer.degraded is Degraded.NO:
        return segrec_service_pb2.SEGMENT_STATE_NO_HISTORY
    return segrec_service_pb2.SEGMENT_STATE_UNAVAILABLE


def label_of(release: Release, answer: Answer) -> str:
    """The label of the user's segment, which people may change at any time; empty without a segment."""
    embedded = answer.embedded
    return "" if embedded.embedding is None else release.names.of(release.segments[embedded.segment_index])


def _fill_assignment(assignment: segrec_service_pb2.SegmentAssignment, release: Release, answer: Answer) -> None:
    embedded = answer.embedded
    assignment.state = segment_state(answer)
    if embedded.embedding is None:
        calibration = release.manifest.confidence
        if calibration is not None and answer.degraded is Degraded.NO:
            assignment.short_history = calibration.min_history > 0
        return
    segment = release.segments[embedded.segment_index]
    assignment.segment_id = segment.segment_id
    assignment.label = label_of(release, answer)
    assignment.distance = embedded.distance
    if embedded.runner_up_index != embedded.segment_index:
        assignment.runner_up_segment_id = release.segments[embedded.runner_up_index].segment_id
        assignment.runner_up_distance = embedded.runner_up_distance
    if embedded.confidence is not None:
        assignment.confidence = embedded.confidence
        assignment.short_history = embedded.is_short


def fill_segment(response: segrec_service_pb2.SegmentResponse, release: Release, answer: Answer) -> None:
    """Fill the response of Segment, or the result of a StreamSegment row."""
    _fill_assignment(response.assignment, release, answer)
    _fill_info(response.info, release, answer)


def fill_recommend(
    response: segrec_service_pb2.RecommendResponse, release: Release, answer: Answer, ranking: Ranking
) -> None:
    """Fill the response of Recommend, or the result of a StreamRecommend row."""
    item_ids, titles, add = release.item_ids, release.titles, response.items.add
    for row, score, reason, seen, explanation, rule_ids in ranking.items:
        item = add()
        item.item_id = item_ids[row]
        item.title = titles[row]
        item.score = score
        item.reason = ITEM_REASONS[reason]
        item.seen = seen
        if rule_ids:
            item.rule_ids.extend(rule_ids)
        if explanation is not None:
            item.explanation.base = explanation.base
            for part, value in explanation.parts.items():
                item.explanation.parts.add(part=_PARTS[part], value=value)
            for place, event_count, value in explanation.history_items:
                item.explanation.history_items.add(
                    item_id=item_ids[place], title=titles[place], event_count=event_count, value=value
                )
    response.strategy = _STRATEGIES[ranking.strategy]
    response.removed_item_count = ranking.removed_count
    _fill_assignment(response.assignment, release, answer)
    _fill_info(response.info, release, answer)


def profile_of(release: Release, segment: SegmentProfile) -> segrec_service_pb2.SegmentProfile:
    """The message of a segment's profile."""
    return segrec_service_pb2.SegmentProfile(
        segment_id=segment.segment_id,
        label=release.names.of(segment),
        user_count=segment.user_count,
        share=segment.share,
        traits=[_trait_message(trait) for trait in segment.traits],
        top_items=_item_messages(release, segment.top_items),
        particular_items=_item_messages(release, segment.particular_items),
        mean_distance=segment.mean_distance,
        silhouette=segment.silhouette,
        history=[segrec_service_pb2.SegmentRecord(**record.model_dump()) for record in segment.history],
        description=segment.description,
        growth=segment.growth,
        activity=segrec_service_pb2.Activity(**segment.activity.model_dump()) if segment.activity else None,
        actions=[segrec_service_pb2.ActionShare(**action.model_dump()) for action in segment.actions],
        hours=segment.hours,
        weekdays=segment.weekdays,
        spend=segrec_service_pb2.Spend(**segment.spend.model_dump()) if segment.spend else None,
    )


def migration_message(migration: Migration | None) -> segrec_service_pb2.Migration | None:
    """The message of a migration; None for a release without a previous release."""
    if migration is None:
        return None
    return segrec_service_pb2.Migration(
        previous_release=migration.previous_release,
        user_count=migration.user_count,
        flows=[_flow_message(flow) for flow in migration.flows],
        born_segment_ids=migration.born_segment_ids,
        retired_segment_ids=migration.retired_segment_ids,
        splits=[segrec_service_pb2.SegmentChange(**change.model_dump()) for change in migration.splits],
        merges=[segrec_service_pb2.SegmentChange(**change.model_dump()) for change in migration.merges],
    )


def _trait_message(trait: Trait) -> segrec_service_pb2.Trait:
    message = segrec_service_pb2.Trait(
        kind=_TRAIT_KINDS.get(trait.kind, segrec_service_pb2.TRAIT_KIND_UNSPECIFIED),
        name=trait.name,
        share=trait.share,
        lift=trait.lift,
        user_count=trait.user_count,
    )
    if trait.lift_low > 0:
        message.lift_low = trait.lift_low
    return message


def _flow_message(flow: Flow) -> segrec_service_pb2.SegmentFlow:
    message = segrec_service_pb2.SegmentFlow(
        to_segment_id=flow.to_segment_id, user_count=flow.user_count, share=flow.share
    )
    if flow.from_segment_id:
        message.from_segment_id = flow.from_segment_id
    return message


def _item_messages(release: Release, items: Sequence[SegmentItem]) -> list[segrec_service_pb2.SegmentItem]:
    titles, vocabulary = release.titles, release.vocabulary
    return [
        segrec_service_pb2.SegmentItem(**item.model_dump(), title=titles[vocabulary[item.item_id] - 1])
        for item in items
    ]


def event_message(event: Event) -> common_pb2.Event:
    """The message of a stored event; a value of NaN stays unset."""
    seconds, milliseconds = divmod(event.timestamp, 1000)
    message = common_pb2.Event(
        item_id=event.item_id,
        action=event.action,
        timestamp=Timestamp(seconds=seconds, nanos=milliseconds * 1_000_000),
    )
    if not math.isnan(event.value):
        message.value = event.value
    return message


def release_message(status: Status, live: Figures | None = None) -> model_service_pb2.Release:
    """The message of a release: its state, its recent figures, and its manifest when the manifest is readable."""
    message = model_service_pb2.Release(
        release=status.number,
        state=_STATES[status.state],
        failure=status.failure,
        traffic_share=status.traffic_share,
        live=live_message(live) if live else None,
    )
    manifest = status.manifest
    if manifest is None:
        return message
    message.standby_reason, message.forced_reason = manifest.stands_by, manifest.forced
    message.create_time.CopyFrom(_timestamp(manifest.created_time))
    if manifest.data_cutoff_time is not None:
        message.cutoff_time.CopyFrom(_timestamp(manifest.data_cutoff_time))
    if manifest.parent_release:
        message.parent_release = manifest.parent_release
    message.embedding_dim = manifest.embedding_dim
    message.max_length = manifest.max_length
    message.item_count = manifest.item_count
    message.segment_count = manifest.segment_count
    message.figures.extend(model_service_pb2.Figure(**figure.model_dump()) for figure in manifest.figures)
    if manifest.min_segment_size:
        message.min_segment_size = manifest.min_segment_size
    if manifest.confidence is not None:
        message.min_confidence = manifest.confidence.min_confidence
        if manifest.confidence.min_history:
            message.min_history = manifest.confidence.min_history
    if manifest.trained_on is not None:
        message.trained_on.CopyFrom(_trained_on_message(manifest.trained_on))
    if manifest.forget_after is not None:
        message.forget_after_time.CopyFrom(_timestamp(manifest.forget_after))
    return message


def _trained_on_message(trained_on: TrainedOn) -> model_service_pb2.TrainedOn:
    message = model_service_pb2.TrainedOn(
        user_count=trained_on.user_count, event_count=trained_on.event_count, files=trained_on.files
    )
    if trained_on.first_event_time is not None:
        message.first_event_time.CopyFrom(_timestamp(trained_on.first_event_time))
    if trained_on.last_event_time is not None:
        message.last_event_time.CopyFrom(_timestamp(trained_on.last_event_time))
    return message


def live_message(figures: Figures) -> model_service_pb2.LiveFigures:
    """The message of a release's recent figures; the times stay unset when no call was timed."""
    message = model_service_pb2.LiveFigures(
        answer_count=figures.answer_count,
        error_share=figures.error_share,
        degraded_share=figures.degraded_share,
        unconfident_share=figures.unconfident_share,
        compared_release=figures.compared_release or None,
        compared_count=figures.compared_count,
        changed_segment_share=figures.changed_share,
        top_items_overlap=figures.top_items_overlap,
        score_shift=figures.score_shift,
    )
    message.window.FromNanoseconds(_nanoseconds(figures.window_seconds))
    if figures.timed_count:
        message.median_time.FromNanoseconds(_nanoseconds(figures.median_seconds))
        message.p99_time.FromNanoseconds(_nanoseconds(figures.p99_seconds))
    return message


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _timestamp(time: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(time.astimezone(UTC))
    return message
