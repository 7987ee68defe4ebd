from google.api import annotations_pb2 as _annotations_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.rpc import status_pb2 as _status_pb2
from segrec.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SegmentState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEGMENT_STATE_UNSPECIFIED: _ClassVar[SegmentState]
    SEGMENT_STATE_ASSIGNED: _ClassVar[SegmentState]
    SEGMENT_STATE_NO_HISTORY: _ClassVar[SegmentState]
    SEGMENT_STATE_UNAVAILABLE: _ClassVar[SegmentState]
    SEGMENT_STATE_NO_CONFIDENT_SEGMENT: _ClassVar[SegmentState]

class Strategy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STRATEGY_UNSPECIFIED: _ClassVar[Strategy]
    STRATEGY_HYBRID: _ClassVar[Strategy]
    STRATEGY_PERSONAL: _ClassVar[Strategy]
    STRATEGY_SEGMENT: _ClassVar[Strategy]
    STRATEGY_POPULAR: _ClassVar[Strategy]

class ItemReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ITEM_REASON_UNSPECIFIED: _ClassVar[ItemReason]
    ITEM_REASON_PERSONAL: _ClassVar[ItemReason]
    ITEM_REASON_SEGMENT: _ClassVar[ItemReason]
    ITEM_REASON_TREND: _ClassVar[ItemReason]
    ITEM_REASON_POPULAR: _ClassVar[ItemReason]
    ITEM_REASON_AGAIN: _ClassVar[ItemReason]
    ITEM_REASON_RULE: _ClassVar[ItemReason]

class ScorePart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORE_PART_UNSPECIFIED: _ClassVar[ScorePart]
    SCORE_PART_OWN_HISTORY: _ClassVar[ScorePart]
    SCORE_PART_ENCODER: _ClassVar[ScorePart]
    SCORE_PART_SEGMENT: _ClassVar[ScorePart]
    SCORE_PART_POPULARITY: _ClassVar[ScorePart]
    SCORE_PART_TREND: _ClassVar[ScorePart]
    SCORE_PART_RULE: _ClassVar[ScorePart]

class TraitKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAIT_KIND_UNSPECIFIED: _ClassVar[TraitKind]
    TRAIT_KIND_CATEGORY: _ClassVar[TraitKind]
    TRAIT_KIND_ITEM: _ClassVar[TraitKind]
    TRAIT_KIND_ACTION: _ClassVar[TraitKind]
    TRAIT_KIND_TIME: _ClassVar[TraitKind]
SEGMENT_STATE_UNSPECIFIED: SegmentState
SEGMENT_STATE_ASSIGNED: SegmentState
SEGMENT_STATE_NO_HISTORY: SegmentState
SEGMENT_STATE_UNAVAILABLE: SegmentState
SEGMENT_STATE_NO_CONFIDENT_SEGMENT: SegmentState
STRATEGY_UNSPECIFIED: Strategy
STRATEGY_HYBRID: Strategy
STRATEGY_PERSONAL: Strategy
STRATEGY_SEGMENT: Strategy
STRATEGY_POPULAR: Strategy
ITEM_REASON_UNSPECIFIED: ItemReason
ITEM_REASON_PERSONAL: ItemReason
ITEM_REASON_SEGMENT: ItemReason
ITEM_REASON_TREND: ItemReason
ITEM_REASON_POPULAR: ItemReason
ITEM_REASON_AGAIN: ItemReason
ITEM_REASON_RULE: ItemReason
SCORE_PART_UNSPECIFIED: ScorePart
SCORE_PART_OWN_HISTORY: ScorePart
SCORE_PART_ENCODER: ScorePart
SCORE_PART_SEGMENT: ScorePart
SCORE_PART_POPULARITY: ScorePart
SCORE_PART_TREND: ScorePart
SCORE_PART_RULE: ScorePart
TRAIT_KIND_UNSPECIFIED: TraitKind
TRAIT_KIND_CATEGORY: TraitKind
TRAIT_KIND_ITEM: TraitKind
TRAIT_KIND_ACTION: TraitKind
TRAIT_KIND_TIME: TraitKind

class SegmentAssignment(_message.Message):
    __slots__ = ("state", "segment_id", "label", "distance", "runner_up_segment_id", "runner_up_distance", "confidence", "short_history")
    STATE_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    RUNNER_UP_SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    RUNNER_UP_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    SHORT_HISTORY_FIELD_NUMBER: _ClassVar[int]
    state: SegmentState
    segment_id: int
    label: str
    distance: float
    runner_up_segment_id: int
    runner_up_distance: float
    confidence: float
    short_history: bool
    def __init__(self, state: _Optional[_Union[SegmentState, str]] = ..., segment_id: _Optional[int] = ..., label: _Optional[str] = ..., distance: _Optional[float] = ..., runner_up_segment_id: _Optional[int] = ..., runner_up_distance: _Optional[float] = ..., confidence: _Optional[float] = ..., short_history: _Optional[bool] = ...) -> None: ...

class ScorePartValue(_message.Message):
    __slots__ = ("part", "value")
    PART_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    part: ScorePart
    value: float
    def __init__(self, part: _Optional[_Union[ScorePart, str]] = ..., value: _Optional[float] = ...) -> None: ...

class HistoryItem(_message.Message):
    __slots__ = ("item_id", "title", "event_count", "value")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    EVENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    title: str
    event_count: int
    value: float
    def __init__(self, item_id: _Optional[str] = ..., title: _Optional[str] = ..., event_count: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...

class ScoreExplanation(_message.Message):
    __slots__ = ("base", "parts", "history_items")
    BASE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_ITEMS_FIELD_NUMBER: _ClassVar[int]
    base: float
    parts: _containers.RepeatedCompositeFieldContainer[ScorePartValue]
    history_items: _containers.RepeatedCompositeFieldContainer[HistoryItem]
    def __init__(self, base: _Optional[float] = ..., parts: _Optional[_Iterable[_Union[ScorePartValue, _Mapping]]] = ..., history_items: _Optional[_Iterable[_Union[HistoryItem, _Mapping]]] = ...) -> None: ...

class RecommendedItem(_message.Message):
    __slots__ = ("item_id", "title", "score", "reason", "seen", "explanation", "rule_ids")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    RULE_IDS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    title: str
    score: float
    reason: ItemReason
    seen: bool
    explanation: ScoreExplanation
    rule_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, item_id: _Optional[str] = ..., title: _Optional[str] = ..., score: _Optional[float] = ..., reason: _Optional[_Union[ItemReason, str]] = ..., seen: _Optional[bool] = ..., explanation: _Optional[_Union[ScoreExplanation, _Mapping]] = ..., rule_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RecommendOptions(_message.Message):
    __slots__ = ("top_k", "strategy", "exclude_seen", "exclude_item_ids", "exclude_categories", "include_categories", "candidate_item_ids", "diversity", "include_variants", "explain")
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_SEEN_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_VARIANTS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    top_k: int
    strategy: Strategy
    exclude_seen: bool
    exclude_item_ids: _containers.RepeatedScalarFieldContainer[str]
    exclude_categories: _containers.RepeatedScalarFieldContainer[str]
    include_categories: _containers.RepeatedScalarFieldContainer[str]
    candidate_item_ids: _containers.RepeatedScalarFieldContainer[str]
    diversity: float
    include_variants: bool
    explain: bool
    def __init__(self, top_k: _Optional[int] = ..., strategy: _Optional[_Union[Strategy, str]] = ..., exclude_seen: _Optional[bool] = ..., exclude_item_ids: _Optional[_Iterable[str]] = ..., exclude_categories: _Optional[_Iterable[str]] = ..., include_categories: _Optional[_Iterable[str]] = ..., candidate_item_ids: _Optional[_Iterable[str]] = ..., diversity: _Optional[float] = ..., include_variants: _Optional[bool] = ..., explain: _Optional[bool] = ...) -> None: ...

class SegmentRequest(_message.Message):
    __slots__ = ("user_id", "events", "release", "release_alias", "session_key")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ALIAS_FIELD_NUMBER: _ClassVar[int]
    SESSION_KEY_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    events: _common_pb2.EventList
    release: int
    release_alias: _common_pb2.ReleaseAlias
    session_key: str
    def __init__(self, user_id: _Optional[str] = ..., events: _Optional[_Union[_common_pb2.EventList, _Mapping]] = ..., release: _Optional[int] = ..., release_alias: _Optional[_Union[_common_pb2.ReleaseAlias, str]] = ..., session_key: _Optional[str] = ...) -> None: ...

class SegmentResponse(_message.Message):
    __slots__ = ("assignment", "info", "warnings")
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    assignment: SegmentAssignment
    info: _common_pb2.AnswerInfo
    warnings: _containers.RepeatedCompositeFieldContainer[_common_pb2.Warning]
    def __init__(self, assignment: _Optional[_Union[SegmentAssignment, _Mapping]] = ..., info: _Optional[_Union[_common_pb2.AnswerInfo, _Mapping]] = ..., warnings: _Optional[_Iterable[_Union[_common_pb2.Warning, _Mapping]]] = ...) -> None: ...

class RecommendRequest(_message.Message):
    __slots__ = ("user_id", "events", "options", "release", "release_alias", "session_key")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ALIAS_FIELD_NUMBER: _ClassVar[int]
    SESSION_KEY_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    events: _common_pb2.EventList
    options: RecommendOptions
    release: int
    release_alias: _common_pb2.ReleaseAlias
    session_key: str
    def __init__(self, user_id: _Optional[str] = ..., events: _Optional[_Union[_common_pb2.EventList, _Mapping]] = ..., options: _Optional[_Union[RecommendOptions, _Mapping]] = ..., release: _Optional[int] = ..., release_alias: _Optional[_Union[_common_pb2.ReleaseAlias, str]] = ..., session_key: _Optional[str] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("items", "assignment", "info", "strategy", "removed_item_count", "warnings")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    REMOVED_ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[RecommendedItem]
    assignment: SegmentAssignment
    info: _common_pb2.AnswerInfo
    strategy: Strategy
    removed_item_count: int
    warnings: _containers.RepeatedCompositeFieldContainer[_common_pb2.Warning]
    def __init__(self, items: _Optional[_Iterable[_Union[RecommendedItem, _Mapping]]] = ..., assignment: _Optional[_Union[SegmentAssignment, _Mapping]] = ..., info: _Optional[_Union[_common_pb2.AnswerInfo, _Mapping]] = ..., strategy: _Optional[_Union[Strategy, str]] = ..., removed_item_count: _Optional[int] = ..., warnings: _Optional[_Iterable[_Union[_common_pb2.Warning, _Mapping]]] = ...) -> None: ...

class StreamSegmentRequest(_message.Message):
    __slots__ = ("config", "chunk")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    config: StreamSegmentConfig
    chunk: UserChunk
    def __init__(self, config: _Optional[_Union[StreamSegmentConfig, _Mapping]] = ..., chunk: _Optional[_Union[UserChunk, _Mapping]] = ...) -> None: ...

class StreamSegmentConfig(_message.Message):
    __slots__ = ("release", "release_alias", "base_release")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ALIAS_FIELD_NUMBER: _ClassVar[int]
    BASE_RELEASE_FIELD_NUMBER: _ClassVar[int]
    release: int
    release_alias: _common_pb2.ReleaseAlias
    base_release: int
    def __init__(self, release: _Optional[int] = ..., release_alias: _Optional[_Union[_common_pb2.ReleaseAlias, str]] = ..., base_release: _Optional[int] = ...) -> None: ...

class UserChunk(_message.Message):
    __slots__ = ("chunk_id", "user_ids")
    CHUNK_ID_FIELD_NUMBER: _ClassVar[int]
    USER_IDS_FIELD_NUMBER: _ClassVar[int]
    chunk_id: int
    user_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, chunk_id: _Optional[int] = ..., user_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class SegmentRow(_message.Message):
    __slots__ = ("user_id", "result", "status")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    result: SegmentResponse
    status: _status_pb2.Status
    def __init__(self, user_id: _Optional[str] = ..., result: _Optional[_Union[SegmentResponse, _Mapping]] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class StreamSegmentResponse(_message.Message):
    __slots__ = ("chunk", "summary")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    chunk: SegmentChunk
    summary: StreamSummary
    def __init__(self, chunk: _Optional[_Union[SegmentChunk, _Mapping]] = ..., summary: _Optional[_Union[StreamSummary, _Mapping]] = ...) -> None: ...

class SegmentChunk(_message.Message):
    __slots__ = ("chunk_id", "rows", "status", "release")
    CHUNK_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    chunk_id: int
    rows: _containers.RepeatedCompositeFieldContainer[SegmentRow]
    status: _status_pb2.Status
    release: int
    def __init__(self, chunk_id: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[SegmentRow, _Mapping]]] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., release: _Optional[int] = ...) -> None: ...

class StreamSummary(_message.Message):
    __slots__ = ("chunk_count", "received_count", "answered_count", "failed_count", "degraded_count")
    CHUNK_COUNT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_COUNT_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_COUNT_FIELD_NUMBER: _ClassVar[int]
    FAILED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_COUNT_FIELD_NUMBER: _ClassVar[int]
    chunk_count: int
    received_count: int
    answered_count: int
    failed_count: int
    degraded_count: int
    def __init__(self, chunk_count: _Optional[int] = ..., received_count: _Optional[int] = ..., answered_count: _Optional[int] = ..., failed_count: _Optional[int] = ..., degraded_count: _Optional[int] = ...) -> None: ...

class StreamRecommendRequest(_message.Message):
    __slots__ = ("config", "chunk")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    config: StreamRecommendConfig
    chunk: UserChunk
    def __init__(self, config: _Optional[_Union[StreamRecommendConfig, _Mapping]] = ..., chunk: _Optional[_Union[UserChunk, _Mapping]] = ...) -> None: ...

class StreamRecommendConfig(_message.Message):
    __slots__ = ("release", "release_alias", "base_release", "options")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ALIAS_FIELD_NUMBER: _ClassVar[int]
    BASE_RELEASE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    release: int
    release_alias: _common_pb2.ReleaseAlias
    base_release: int
    options: RecommendOptions
    def __init__(self, release: _Optional[int] = ..., release_alias: _Optional[_Union[_common_pb2.ReleaseAlias, str]] = ..., base_release: _Optional[int] = ..., options: _Optional[_Union[RecommendOptions, _Mapping]] = ...) -> None: ...

class RecommendRow(_message.Message):
    __slots__ = ("user_id", "result", "status")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    result: RecommendResponse
    status: _status_pb2.Status
    def __init__(self, user_id: _Optional[str] = ..., result: _Optional[_Union[RecommendResponse, _Mapping]] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class StreamRecommendResponse(_message.Message):
    __slots__ = ("chunk", "summary")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    chunk: RecommendChunk
    summary: StreamSummary
    def __init__(self, chunk: _Optional[_Union[RecommendChunk, _Mapping]] = ..., summary: _Optional[_Union[StreamSummary, _Mapping]] = ...) -> None: ...

class RecommendChunk(_message.Message):
    __slots__ = ("chunk_id", "rows", "status", "release", "has_more", "warnings")
    CHUNK_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    HAS_MORE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    chunk_id: int
    rows: _containers.RepeatedCompositeFieldContainer[RecommendRow]
    status: _status_pb2.Status
    release: int
    has_more: bool
    warnings: _containers.RepeatedCompositeFieldContainer[_common_pb2.Warning]
    def __init__(self, chunk_id: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[RecommendRow, _Mapping]]] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., release: _Optional[int] = ..., has_more: _Optional[bool] = ..., warnings: _Optional[_Iterable[_Union[_common_pb2.Warning, _Mapping]]] = ...) -> None: ...

class SegmentItem(_message.Message):
    __slots__ = ("item_id", "title", "user_share", "lift", "lift_low")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    USER_SHARE_FIELD_NUMBER: _ClassVar[int]
    LIFT_FIELD_NUMBER: _ClassVar[int]
    LIFT_LOW_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    title: str
    user_share: float
    lift: float
    lift_low: float
    def __init__(self, item_id: _Optional[str] = ..., title: _Optional[str] = ..., user_share: _Optional[float] = ..., lift: _Optional[float] = ..., lift_low: _Optional[float] = ...) -> None: ...

class Trait(_message.Message):
    __slots__ = ("kind", "name", "share", "lift", "lift_low", "user_count")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    LIFT_FIELD_NUMBER: _ClassVar[int]
    LIFT_LOW_FIELD_NUMBER: _ClassVar[int]
    USER_COUNT_FIELD_NUMBER: _ClassVar[int]
    kind: TraitKind
    name: str
    share: float
    lift: float
    lift_low: float
    user_count: int
    def __init__(self, kind: _Optional[_Union[TraitKind, str]] = ..., name: _Optional[str] = ..., share: _Optional[float] = ..., lift: _Optional[float] = ..., lift_low: _Optional[float] = ..., user_count: _Optional[int] = ...) -> None: ...

class Activity(_message.Message):
    __slots__ = ("mean_events", "median_events", "mean_active_days", "mean_days_since_last")
    MEAN_EVENTS_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_EVENTS_FIELD_NUMBER: _ClassVar[int]
    MEAN_ACTIVE_DAYS_FIELD_NUMBER: _ClassVar[int]
    MEAN_DAYS_SINCE_LAST_FIELD_NUMBER: _ClassVar[int]
    mean_events: float
    median_events: float
    mean_active_days: float
    mean_days_since_last: float
    def __init__(self, mean_events: _Optional[float] = ..., median_events: _Optional[float] = ..., mean_active_days: _Optional[float] = ..., mean_days_since_last: _Optional[float] = ...) -> None: ...

class ActionShare(_message.Message):
    __slots__ = ("action", "share", "lift")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    LIFT_FIELD_NUMBER: _ClassVar[int]
    action: str
    share: float
    lift: float
    def __init__(self, action: _Optional[str] = ..., share: _Optional[float] = ..., lift: _Optional[float] = ...) -> None: ...

class Spend(_message.Message):
    __slots__ = ("mean_value", "mean_total", "median_total")
    MEAN_VALUE_FIELD_NUMBER: _ClassVar[int]
    MEAN_TOTAL_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_TOTAL_FIELD_NUMBER: _ClassVar[int]
    mean_value: float
    mean_total: float
    median_total: float
    def __init__(self, mean_value: _Optional[float] = ..., mean_total: _Optional[float] = ..., median_total: _Optional[float] = ...) -> None: ...

class SegmentRecord(_message.Message):
    __slots__ = ("release", "user_count", "share")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    USER_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    release: int
    user_count: int
    share: float
    def __init__(self, release: _Optional[int] = ..., user_count: _Optional[int] = ..., share: _Optional[float] = ...) -> None: ...

class SegmentProfile(_message.Message):
    __slots__ = ("segment_id", "label", "user_count", "share", "traits", "top_items", "mean_distance", "silhouette", "history", "description", "growth", "activity", "actions", "hours", "weekdays", "spend", "particular_items")
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    USER_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    TRAITS_FIELD_NUMBER: _ClassVar[int]
    TOP_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MEAN_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    SILHOUETTE_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    GROWTH_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    HOURS_FIELD_NUMBER: _ClassVar[int]
    WEEKDAYS_FIELD_NUMBER: _ClassVar[int]
    SPEND_FIELD_NUMBER: _ClassVar[int]
    PARTICULAR_ITEMS_FIELD_NUMBER: _ClassVar[int]
    segment_id: int
    label: str
    user_count: int
    share: float
    traits: _containers.RepeatedCompositeFieldContainer[Trait]
    top_items: _containers.RepeatedCompositeFieldContainer[SegmentItem]
    mean_distance: float
    silhouette: float
    history: _containers.RepeatedCompositeFieldContainer[SegmentRecord]
    description: str
    growth: float
    activity: Activity
    actions: _containers.RepeatedCompositeFieldContainer[ActionShare]
    hours: _containers.RepeatedScalarFieldContainer[float]
    weekdays: _containers.RepeatedScalarFieldContainer[float]
    spend: Spend
    particular_items: _containers.RepeatedCompositeFieldContainer[SegmentItem]
    def __init__(self, segment_id: _Optional[int] = ..., label: _Optional[str] = ..., user_count: _Optional[int] = ..., share: _Optional[float] = ..., traits: _Optional[_Iterable[_Union[Trait, _Mapping]]] = ..., top_items: _Optional[_Iterable[_Union[SegmentItem, _Mapping]]] = ..., mean_distance: _Optional[float] = ..., silhouette: _Optional[float] = ..., history: _Optional[_Iterable[_Union[SegmentRecord, _Mapping]]] = ..., description: _Optional[str] = ..., growth: _Optional[float] = ..., activity: _Optional[_Union[Activity, _Mapping]] = ..., actions: _Optional[_Iterable[_Union[ActionShare, _Mapping]]] = ..., hours: _Optional[_Iterable[float]] = ..., weekdays: _Optional[_Iterable[float]] = ..., spend: _Optional[_Union[Spend, _Mapping]] = ..., particular_items: _Optional[_Iterable[_Union[SegmentItem, _Mapping]]] = ...) -> None: ...

class SegmentFlow(_message.Message):
    __slots__ = ("from_segment_id", "to_segment_id", "user_count", "share")
    FROM_SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    TO_SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    USER_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    from_segment_id: int
    to_segment_id: int
    user_count: int
    share: float
    def __init__(self, from_segment_id: _Optional[int] = ..., to_segment_id: _Optional[int] = ..., user_count: _Optional[int] = ..., share: _Optional[float] = ...) -> None: ...

class SegmentChange(_message.Message):
    __slots__ = ("from_segment_ids", "to_segment_ids")
    FROM_SEGMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    TO_SEGMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    from_segment_ids: _containers.RepeatedScalarFieldContainer[int]
    to_segment_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, from_segment_ids: _Optional[_Iterable[int]] = ..., to_segment_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Migration(_message.Message):
    __slots__ = ("previous_release", "user_count", "flows", "born_segment_ids", "retired_segment_ids", "splits", "merges")
    PREVIOUS_RELEASE_FIELD_NUMBER: _ClassVar[int]
    USER_COUNT_FIELD_NUMBER: _ClassVar[int]
    FLOWS_FIELD_NUMBER: _ClassVar[int]
    BORN_SEGMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    RETIRED_SEGMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    SPLITS_FIELD_NUMBER: _ClassVar[int]
    MERGES_FIELD_NUMBER: _ClassVar[int]
    previous_release: int
    user_count: int
    flows: _containers.RepeatedCompositeFieldContainer[SegmentFlow]
    born_segment_ids: _containers.RepeatedScalarFieldContainer[int]
    retired_segment_ids: _containers.RepeatedScalarFieldContainer[int]
    splits: _containers.RepeatedCompositeFieldContainer[SegmentChange]
    merges: _containers.RepeatedCompositeFieldContainer[SegmentChange]
    def __init__(self, previous_release: _Optional[int] = ..., user_count: _Optional[int] = ..., flows: _Optional[_Iterable[_Union[SegmentFlow, _Mapping]]] = ..., born_segment_ids: _Optional[_Iterable[int]] = ..., retired_segment_ids: _Optional[_Iterable[int]] = ..., splits: _Optional[_Iterable[_Union[SegmentChange, _Mapping]]] = ..., merges: _Optional[_Iterable[_Union[SegmentChange, _Mapping]]] = ...) -> None: ...

class ListSegmentsRequest(_message.Message):
    __slots__ = ("release", "release_alias", "page_size", "page_token")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ALIAS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    release: int
    release_alias: _common_pb2.ReleaseAlias
    page_size: int
    page_token: str
    def __init__(self, release: _Optional[int] = ..., release_alias: _Optional[_Union[_common_pb2.ReleaseAlias, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSegmentsResponse(_message.Message):
    __slots__ = ("segments", "release", "migration", "next_page_token", "total_size")
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    segments: _containers.RepeatedCompositeFieldContainer[SegmentProfile]
    release: int
    migration: Migration
    next_page_token: str
    total_size: int
    def __init__(self, segments: _Optional[_Iterable[_Union[SegmentProfile, _Mapping]]] = ..., release: _Optional[int] = ..., migration: _Optional[_Union[Migration, _Mapping]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ...) -> None: ...

class GetSegmentRequest(_message.Message):
    __slots__ = ("segment_id", "release", "release_alias")
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ALIAS_FIELD_NUMBER: _ClassVar[int]
    segment_id: int
    release: int
    release_alias: _common_pb2.ReleaseAlias
    def __init__(self, segment_id: _Optional[int] = ..., release: _Optional[int] = ..., release_alias: _Optional[_Union[_common_pb2.ReleaseAlias, str]] = ...) -> None: ...

class GetSegmentResponse(_message.Message):
    __slots__ = ("segment", "release", "migration")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    segment: SegmentProfile
    release: int
    migration: Migration
    def __init__(self, segment: _Optional[_Union[SegmentProfile, _Mapping]] = ..., release: _Optional[int] = ..., migration: _Optional[_Union[Migration, _Mapping]] = ...) -> None: ...
