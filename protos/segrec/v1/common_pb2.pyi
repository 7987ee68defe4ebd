import datetime

from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DegradedReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEGRADED_REASON_UNSPECIFIED: _ClassVar[DegradedReason]
    DEGRADED_REASON_STALE_EMBEDDING: _ClassVar[DegradedReason]
    DEGRADED_REASON_ENCODER_UNAVAILABLE: _ClassVar[DegradedReason]
    DEGRADED_REASON_STORE_UNAVAILABLE: _ClassVar[DegradedReason]
    DEGRADED_REASON_NOT_EXPLAINED: _ClassVar[DegradedReason]

class ReleaseAlias(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RELEASE_ALIAS_UNSPECIFIED: _ClassVar[ReleaseAlias]
    RELEASE_ALIAS_STABLE: _ClassVar[ReleaseAlias]
    RELEASE_ALIAS_CANARY: _ClassVar[ReleaseAlias]

class WarningReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WARNING_REASON_UNSPECIFIED: _ClassVar[WarningReason]
    WARNING_REASON_UNKNOWN_ITEM: _ClassVar[WarningReason]
    WARNING_REASON_UNKNOWN_ACTION: _ClassVar[WarningReason]
    WARNING_REASON_UNKNOWN_CATEGORY: _ClassVar[WarningReason]
    WARNING_REASON_HISTORY_NOT_ALLOWED: _ClassVar[WarningReason]
DEGRADED_REASON_UNSPECIFIED: DegradedReason
DEGRADED_REASON_STALE_EMBEDDING: DegradedReason
DEGRADED_REASON_ENCODER_UNAVAILABLE: DegradedReason
DEGRADED_REASON_STORE_UNAVAILABLE: DegradedReason
DEGRADED_REASON_NOT_EXPLAINED: DegradedReason
RELEASE_ALIAS_UNSPECIFIED: ReleaseAlias
RELEASE_ALIAS_STABLE: ReleaseAlias
RELEASE_ALIAS_CANARY: ReleaseAlias
WARNING_REASON_UNSPECIFIED: WarningReason
WARNING_REASON_UNKNOWN_ITEM: WarningReason
WARNING_REASON_UNKNOWN_ACTION: WarningReason
WARNING_REASON_UNKNOWN_CATEGORY: WarningReason
WARNING_REASON_HISTORY_NOT_ALLOWED: WarningReason

class Event(_message.Message):
    __slots__ = ("item_id", "action", "value", "timestamp", "event_id")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    action: str
    value: float
    timestamp: _timestamp_pb2.Timestamp
    event_id: str
    def __init__(self, item_id: _Optional[str] = ..., action: _Optional[str] = ..., value: _Optional[float] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., event_id: _Optional[str] = ...) -> None: ...

class EventList(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class AnswerInfo(_message.Message):
    __slots__ = ("release", "history_event_count", "ignored_event_count", "degraded", "degraded_reason")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    HISTORY_EVENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    IGNORED_EVENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    release: int
    history_event_count: int
    ignored_event_count: int
    degraded: bool
    degraded_reason: DegradedReason
    def __init__(self, release: _Optional[int] = ..., history_event_count: _Optional[int] = ..., ignored_event_count: _Optional[int] = ..., degraded: _Optional[bool] = ..., degraded_reason: _Optional[_Union[DegradedReason, str]] = ...) -> None: ...

class Warning(_message.Message):
    __slots__ = ("reason", "field", "value")
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    reason: WarningReason
    field: str
    value: str
    def __init__(self, reason: _Optional[_Union[WarningReason, str]] = ..., field: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
