import datetime

from google.api import annotations_pb2 as _annotations_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReleaseState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RELEASE_STATE_UNSPECIFIED: _ClassVar[ReleaseState]
    RELEASE_STATE_AVAILABLE: _ClassVar[ReleaseState]
    RELEASE_STATE_LOADING: _ClassVar[ReleaseState]
    RELEASE_STATE_ACTIVE: _ClassVar[ReleaseState]
    RELEASE_STATE_STANDBY: _ClassVar[ReleaseState]
    RELEASE_STATE_FAILED: _ClassVar[ReleaseState]
    RELEASE_STATE_CANARY: _ClassVar[ReleaseState]
    RELEASE_STATE_SHADOW: _ClassVar[ReleaseState]
RELEASE_STATE_UNSPECIFIED: ReleaseState
RELEASE_STATE_AVAILABLE: ReleaseState
RELEASE_STATE_LOADING: ReleaseState
RELEASE_STATE_ACTIVE: ReleaseState
RELEASE_STATE_STANDBY: ReleaseState
RELEASE_STATE_FAILED: ReleaseState
RELEASE_STATE_CANARY: ReleaseState
RELEASE_STATE_SHADOW: ReleaseState

class Release(_message.Message):
    __slots__ = ("release", "state", "failure", "create_time", "cutoff_time", "parent_release", "embedding_dim", "max_length", "item_count", "segment_count", "figures", "min_confidence", "min_history", "min_segment_size", "traffic_share", "live", "trained_on", "forget_after_time", "standby_reason", "forced_reason")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    CUTOFF_TIME_FIELD_NUMBER: _ClassVar[int]
    PARENT_RELEASE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIM_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    MIN_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    MIN_HISTORY_FIELD_NUMBER: _ClassVar[int]
    MIN_SEGMENT_SIZE_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_SHARE_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    TRAINED_ON_FIELD_NUMBER: _ClassVar[int]
    FORGET_AFTER_TIME_FIELD_NUMBER: _ClassVar[int]
    STANDBY_REASON_FIELD_NUMBER: _ClassVar[int]
    FORCED_REASON_FIELD_NUMBER: _ClassVar[int]
    release: int
    state: ReleaseState
    failure: str
    create_time: _timestamp_pb2.Timestamp
    cutoff_time: _timestamp_pb2.Timestamp
    parent_release: int
    embedding_dim: int
    max_length: int
    item_count: int
    segment_count: int
    figures: _containers.RepeatedCompositeFieldContainer[Figure]
    min_confidence: float
    min_history: int
    min_segment_size: int
    traffic_share: float
    live: LiveFigures
    trained_on: TrainedOn
    forget_after_time: _timestamp_pb2.Timestamp
    standby_reason: str
    forced_reason: str
    def __init__(self, release: _Optional[int] = ..., state: _Optional[_Union[ReleaseState, str]] = ..., failure: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., cutoff_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., parent_release: _Optional[int] = ..., embedding_dim: _Optional[int] = ..., max_length: _Optional[int] = ..., item_count: _Optional[int] = ..., segment_count: _Optional[int] = ..., figures: _Optional[_Iterable[_Union[Figure, _Mapping]]] = ..., min_confidence: _Optional[float] = ..., min_history: _Optional[int] = ..., min_segment_size: _Optional[int] = ..., traffic_share: _Optional[float] = ..., live: _Optional[_Union[LiveFigures, _Mapping]] = ..., trained_on: _Optional[_Union[TrainedOn, _Mapping]] = ..., forget_after_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., standby_reason: _Optional[str] = ..., forced_reason: _Optional[str] = ...) -> None: ...

class Figure(_message.Message):
    __slots__ = ("protocol", "method", "metric", "k", "value", "low", "high")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    protocol: str
    method: str
    metric: str
    k: int
    value: float
    low: float
    high: float
    def __init__(self, protocol: _Optional[str] = ..., method: _Optional[str] = ..., metric: _Optional[str] = ..., k: _Optional[int] = ..., value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class TrainedOn(_message.Message):
    __slots__ = ("first_event_time", "last_event_time", "user_count", "event_count", "files")
    FIRST_EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    USER_COUNT_FIELD_NUMBER: _ClassVar[int]
    EVENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    first_event_time: _timestamp_pb2.Timestamp
    last_event_time: _timestamp_pb2.Timestamp
    user_count: int
    event_count: int
    files: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, first_event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., user_count: _Optional[int] = ..., event_count: _Optional[int] = ..., files: _Optional[_Iterable[str]] = ...) -> None: ...

class LiveFigures(_message.Message):
    __slots__ = ("window", "answer_count", "error_share", "degraded_share", "unconfident_share", "median_time", "p99_time", "compared_release", "compared_count", "changed_segment_share", "top_items_overlap", "score_shift")
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    ANSWER_COUNT_FIELD_NUMBER: _ClassVar[int]
    ERROR_SHARE_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_SHARE_FIELD_NUMBER: _ClassVar[int]
    UNCONFIDENT_SHARE_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_TIME_FIELD_NUMBER: _ClassVar[int]
    P99_TIME_FIELD_NUMBER: _ClassVar[int]
    COMPARED_RELEASE_FIELD_NUMBER: _ClassVar[int]
    COMPARED_COUNT_FIELD_NUMBER: _ClassVar[int]
    CHANGED_SEGMENT_SHARE_FIELD_NUMBER: _ClassVar[int]
    TOP_ITEMS_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    SCORE_SHIFT_FIELD_NUMBER: _ClassVar[int]
    window: _duration_pb2.Duration
    answer_count: int
    error_share: float
    degraded_share: float
    unconfident_share: float
    median_time: _duration_pb2.Duration
    p99_time: _duration_pb2.Duration
    compared_release: int
    compared_count: int
    changed_segment_share: float
    top_items_overlap: float
    score_shift: float
    def __init__(self, window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., answer_count: _Optional[int] = ..., error_share: _Optional[float] = ..., degraded_share: _Optional[float] = ..., unconfident_share: _Optional[float] = ..., median_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., p99_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., compared_release: _Optional[int] = ..., compared_count: _Optional[int] = ..., changed_segment_share: _Optional[float] = ..., top_items_overlap: _Optional[float] = ..., score_shift: _Optional[float] = ...) -> None: ...

class Guard(_message.Message):
    __slots__ = ("max_error_share", "max_degraded_share", "max_unconfident_share", "max_p99_time", "window", "min_answer_count")
    MAX_ERROR_SHARE_FIELD_NUMBER: _ClassVar[int]
    MAX_DEGRADED_SHARE_FIELD_NUMBER: _ClassVar[int]
    MAX_UNCONFIDENT_SHARE_FIELD_NUMBER: _ClassVar[int]
    MAX_P99_TIME_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    MIN_ANSWER_COUNT_FIELD_NUMBER: _ClassVar[int]
    max_error_share: float
    max_degraded_share: float
    max_unconfident_share: float
    max_p99_time: _duration_pb2.Duration
    window: _duration_pb2.Duration
    min_answer_count: int
    def __init__(self, max_error_share: _Optional[float] = ..., max_degraded_share: _Optional[float] = ..., max_unconfident_share: _Optional[float] = ..., max_p99_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., min_answer_count: _Optional[int] = ...) -> None: ...

class Traffic(_message.Message):
    __slots__ = ("stable_release", "canary_release", "canary_share", "shadow_release", "guard")
    STABLE_RELEASE_FIELD_NUMBER: _ClassVar[int]
    CANARY_RELEASE_FIELD_NUMBER: _ClassVar[int]
    CANARY_SHARE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_RELEASE_FIELD_NUMBER: _ClassVar[int]
    GUARD_FIELD_NUMBER: _ClassVar[int]
    stable_release: int
    canary_release: int
    canary_share: float
    shadow_release: int
    guard: Guard
    def __init__(self, stable_release: _Optional[int] = ..., canary_release: _Optional[int] = ..., canary_share: _Optional[float] = ..., shadow_release: _Optional[int] = ..., guard: _Optional[_Union[Guard, _Mapping]] = ...) -> None: ...

class TrafficRecord(_message.Message):
    __slots__ = ("traffic", "previous_releases", "update_time", "changed_by", "reason", "etag")
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_RELEASES_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    CHANGED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    traffic: Traffic
    previous_releases: _containers.RepeatedScalarFieldContainer[int]
    update_time: _timestamp_pb2.Timestamp
    changed_by: str
    reason: str
    etag: str
    def __init__(self, traffic: _Optional[_Union[Traffic, _Mapping]] = ..., previous_releases: _Optional[_Iterable[int]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., changed_by: _Optional[str] = ..., reason: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class ListReleasesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListReleasesResponse(_message.Message):
    __slots__ = ("releases", "traffic", "traffic_failure", "next_page_token", "total_size")
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FAILURE_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    releases: _containers.RepeatedCompositeFieldContainer[Release]
    traffic: TrafficRecord
    traffic_failure: str
    next_page_token: str
    total_size: int
    def __init__(self, releases: _Optional[_Iterable[_Union[Release, _Mapping]]] = ..., traffic: _Optional[_Union[TrafficRecord, _Mapping]] = ..., traffic_failure: _Optional[str] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ...) -> None: ...

class GetReleaseRequest(_message.Message):
    __slots__ = ("release",)
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    release: int
    def __init__(self, release: _Optional[int] = ...) -> None: ...

class GetReleaseResponse(_message.Message):
    __slots__ = ("release",)
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    release: Release
    def __init__(self, release: _Optional[_Union[Release, _Mapping]] = ...) -> None: ...

class SetTrafficRequest(_message.Message):
    __slots__ = ("traffic", "changed_by", "reason", "etag")
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    CHANGED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    traffic: Traffic
    changed_by: str
    reason: str
    etag: str
    def __init__(self, traffic: _Optional[_Union[Traffic, _Mapping]] = ..., changed_by: _Optional[str] = ..., reason: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class SetTrafficResponse(_message.Message):
    __slots__ = ("traffic",)
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    traffic: TrafficRecord
    def __init__(self, traffic: _Optional[_Union[TrafficRecord, _Mapping]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("changed_by", "reason", "etag")
    CHANGED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    changed_by: str
    reason: str
    etag: str
    def __init__(self, changed_by: _Optional[str] = ..., reason: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("traffic", "summary")
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    traffic: TrafficRecord
    summary: str
    def __init__(self, traffic: _Optional[_Union[TrafficRecord, _Mapping]] = ..., summary: _Optional[str] = ...) -> None: ...
