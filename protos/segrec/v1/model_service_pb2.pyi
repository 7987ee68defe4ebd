import datetime

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
RELEASE_STATE_UNSPECIFIED: ReleaseState
RELEASE_STATE_AVAILABLE: ReleaseState
RELEASE_STATE_LOADING: ReleaseState
RELEASE_STATE_ACTIVE: ReleaseState
RELEASE_STATE_STANDBY: ReleaseState
RELEASE_STATE_FAILED: ReleaseState

class Release(_message.Message):
    __slots__ = ("release", "state", "failure", "created_time", "data_cutoff_time", "parent_release", "embedding_dim", "max_length", "item_count", "segment_count", "figures", "min_confidence", "min_history", "min_segment_size")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    CREATED_TIME_FIELD_NUMBER: _ClassVar[int]
    DATA_CUTOFF_TIME_FIELD_NUMBER: _ClassVar[int]
    PARENT_RELEASE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIM_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    MIN_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    MIN_HISTORY_FIELD_NUMBER: _ClassVar[int]
    MIN_SEGMENT_SIZE_FIELD_NUMBER: _ClassVar[int]
    release: int
    state: ReleaseState
    failure: str
    created_time: _timestamp_pb2.Timestamp
    data_cutoff_time: _timestamp_pb2.Timestamp
    parent_release: int
    embedding_dim: int
    max_length: int
    item_count: int
    segment_count: int
    figures: _containers.ScalarMap[str, float]
    min_confidence: float
    min_history: int
    min_segment_size: int
    def __init__(self, release: _Optional[int] = ..., state: _Optional[_Union[ReleaseState, str]] = ..., failure: _Optional[str] = ..., created_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., data_cutoff_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., parent_release: _Optional[int] = ..., embedding_dim: _Optional[int] = ..., max_length: _Optional[int] = ..., item_count: _Optional[int] = ..., segment_count: _Optional[int] = ..., figures: _Optional[_Mapping[str, float]] = ..., min_confidence: _Optional[float] = ..., min_history: _Optional[int] = ..., min_segment_size: _Optional[int] = ...) -> None: ...

class ListReleasesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListReleasesResponse(_message.Message):
    __slots__ = ("releases",)
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    releases: _containers.RepeatedCompositeFieldContainer[Release]
    def __init__(self, releases: _Optional[_Iterable[_Union[Release, _Mapping]]] = ...) -> None: ...

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
