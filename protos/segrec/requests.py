"""Builds request messages from Python arguments, for the blocking and the asyncio clients. No I/O."""

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypedDict, TypeVar, cast

from google.protobuf.message import Message

from segrec.calls import CallOptions
from segrec.errors import InvalidArgument
from segrec.v1.catalogue_service_pb2 import SimilarItemsRequest
from segrec.v1.common_pb2 import Event, EventList, ReleaseAlias
from segrec.v1.event_service_pb2 import RecordEventsRequest, RecordEventsResponse, UserEvent
from segrec.v1.model_service_pb2 import Guard, SetTrafficRequest, Traffic
from segrec.v1.segrec_service_pb2 import (
    RecommendOptions,
    RecommendRequest,
    SegmentRequest,
    Strategy,
    StreamRecommendConfig,
    StreamRecommendRequest,
    StreamSegmentConfig,
    StreamSegmentRequest,
)

MessageT = TypeVar("MessageT", bound=Message)

TRAFFIC_CHANGE_SECONDS = 90.0
"""Default deadline of a change of the traffic, which may have to load a release."""
MAX_WARNINGS = 20
"""Most warnings about one request."""
MAX_PAGE_SIZE = 1000
"""Most entries in one page of a list."""
MAX_EVENTS_PER_CALL = 1024
"""Most events in one RecordEvents request."""

_ALIASES = {"stable": ReleaseAlias.RELEASE_ALIAS_STABLE, "canary": ReleaseAlias.RELEASE_ALIAS_CANARY}


class RecommendArguments(TypedDict, total=False):
    """The fields of `segrec.v1.RecommendOptions` as keyword arguments, all optional."""

    top_k: int
    strategy: str | int
    exclude_seen: bool
    exclude_item_ids: Sequence[str]
    exclude_categories: Sequence[str]
    include_categories: Sequence[str]
    candidate_item_ids: Sequence[str]
    diversity: float
    include_variants: bool
    explain: bool


class SimilarCall(CallOptions, total=False):
    """The fields of `segrec.v1.SimilarItemsRequest` beside the item and the release, and the options of the call."""

    top_k: int
    exclude_item_ids: Sequence[str]
    exclude_categories: Sequence[str]
    include_categories: Sequence[str]
    candidate_item_ids: Sequence[str]
    include_variants: bool


class RecommendCall(RecommendArguments, CallOptions, total=False):
    """The keyword arguments of `recommend` beside the subject and the release."""


def split_arguments(arguments: RecommendCall) -> tuple[RecommendArguments, CallOptions]:
    """The fields of the request, and the options of the call."""
    fields = {name: value for name, value in arguments.items() if name not in CallOptions.__optional_keys__}
    options = {name: value for name, value in arguments.items() if name in CallOptions.__optional_keys__}
    return cast(RecommendArguments, fields), cast(CallOptions, options)


def similar_request(
    item_id: str, release: int | str, arguments: SimilarCall
) -> tuple[SimilarItemsRequest, CallOptions]:
    """A request for items like an item, and the options of the call. Raises InvalidArgument."""
    checked_type(item_id, "item_id")
    fields = {name: value for name, value in arguments.items() if name not in CallOptions.__optional_keys__}
    options = {name: value for name, value in arguments.items() if name in CallOptions.__optional_keys__}
    return build(SimilarItemsRequest, item_id=item_id, **fields, **pin_fields(release)), cast(CallOptions, options)


def strategy_of(name: str | int) -> int:
    """The enum value of `hybrid`, `personal`, `segment` or `popular`; a number is returned unchanged.

    Raises InvalidArgument for another name.
    """
    if not isinstance(name, str):
        return name
    try:
        return Strategy.Value(f"STRATEGY_{name.upper()}")
    except ValueError:
        message = f"Unknown strategy {name!r}: choose hybrid, personal, segment or popular"
        raise InvalidArgument(message, field="options.strategy") from None


def build(message_type: Callable[..., MessageT], **fields: Any) -> MessageT:
    """A message. Raises InvalidArgument when a field has the wrong type, is too large, or is not UTF-8."""
    try:
        return message_type(**fields)
    except (TypeError, ValueError, AttributeError) as error:
        name = _wrong_field(message_type, fields)
        kind = f" as {type(fields[name]).__name__}" if name else ""
        raise InvalidArgument(f"{name or 'A value'} cannot be sent{kind}: {error}", field=name) from error


def _wrong_field(message_type: Callable[..., Message], fields: dict[str, Any]) -> str:
    """The first field that makes no message; empty when each does alone."""
    for name, value in fields.items():
        try:
            message_type(**{name: value})
        except (TypeError, ValueError, AttributeError):
            return name
    return ""


def recommend_options(arguments: RecommendArguments) -> RecommendOptions:
    """The message of these options. Raises InvalidArgument."""
    fields: dict[str, Any] = dict(arguments)
    if "strategy" in fields:
        fields["strategy"] = strategy_of(arguments["strategy"])
    return build(RecommendOptions, **fields)


def pin_fields(release: int | str) -> dict[str, int]:
    """The request fields that pin `release`: a number, 0 for no pin, "stable" or "canary". Raises InvalidArgument."""
    if not isinstance(release, str):
        return {"release": release} if release else {}
    try:
        return {"release_alias": _ALIASES[release]}
    except KeyError:
        message = f"Unknown release {release!r}: give a number, stable or canary"
        raise InvalidArgument(message, field="release_alias") from None


def segment_request(
    user_id: str | None, events: Iterable[Event] | None, release: int | str, session_key: str
) -> SegmentRequest:
    """A request for a user of the history store or for an inline history. Raises InvalidArgument."""
    if _is_inline(user_id, events):
        listed = build(EventList, events=events)
        return build(SegmentRequest, events=listed, session_key=session_key, **pin_fields(release))
    return build(SegmentRequest, user_id=sendable(user_id), session_key=session_key, **pin_fields(release))


def recommend_request(
    user_id: str | None,
    events: Iterable[Event] | None,
    release: int | str,
    session_key: str,
    arguments: RecommendArguments,
) -> RecommendRequest:
    """A request for a user of the history store or for an inline history. Raises InvalidArgument."""
    rest = {"options": recommend_options(arguments), "session_key": session_key, **pin_fields(release)}
    if _is_inline(user_id, events):
        return build(RecommendRequest, events=build(EventList, events=events), **rest)
    return build(RecommendRequest, user_id=sendable(user_id), **rest)


def _is_inline(user_id: str | None, events: Iterable[Event] | None) -> bool:
    if (user_id is None) == (events is None):
        raise InvalidArgument("Give either user_id or events", field="subject")
    return events is not None


def sendable(user_id: str | None) -> str:
    """The id itself. Raises InvalidArgument when the id cannot be sent."""
    if user_id is not None:
        checked_type(user_id, "user_id")
    problem = id_problem(user_id or "")
    if problem:
        raise InvalidArgument(f"The user id {problem}", field="user_id")
    return user_id or ""


def checked_type(value: object, field: str) -> None:
    """Raises InvalidArgument unless an id is a str: a number has several texts, and only one is the user."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{field} must be a str, not {type(value).__name__}", field=field)


def id_problem(user_id: str) -> str:
    """Why the id cannot be sent, as the end of a sentence; empty when it can. The server checks the other rules."""
    if len(user_id) > 4096:
        return "is far longer than 256 bytes"
    try:
        user_id.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    return ""


def id_problem_reason(user_id: str) -> str:
    """The server's reason for an id with an `id_problem`."""
    return "ID_TOO_LONG" if len(user_id) > 4096 else "ID_NOT_UTF8"


def stream_segment_config(release: int | str) -> StreamSegmentRequest:
    """The first message of a StreamSegment call. Raises InvalidArgument."""
    return StreamSegmentRequest(config=build(StreamSegmentConfig, **pin_fields(release)))


def stream_recommend_config(release: int | str, arguments: RecommendArguments) -> StreamRecommendRequest:
    """The first message of a StreamRecommend call. Raises InvalidArgument."""
    config = build(StreamRecommendConfig, options=recommend_options(arguments), **pin_fields(release))
    return StreamRecommendRequest(config=config)


def traffic_request(
    stable: int,
    canary: int,
    share: float,
    shadow: int,
    guard: Guard | None,
    changed_by: str,
    reason: str,
    etag: str = "",
) -> SetTrafficRequest:
    """A request that replaces the traffic. Raises InvalidArgument."""
    traffic = build(
        Traffic,
        stable_release=stable or None,
        canary_release=canary or None,
        canary_share=share or None,
        shadow_release=shadow or None,
        guard=guard,
    )
    return build(SetTrafficRequest, traffic=traffic, changed_by=changed_by, reason=reason, etag=etag)


def record_requests(events: Iterable[UserEvent]) -> Iterator[RecordEventsRequest]:
    """Requests of at most 1,024 events each, in order.

    An event without id and time gets a random id, written into the event, so that the server stores a repeated event
    once. An event with a time needs no id: the server makes the id from the content.
    """
    remaining = iter(events)
    while chunk := list(islice(remaining, MAX_EVENTS_PER_CALL)):
        for event in chunk:
            if not event.event.event_id and not event.event.HasField("timestamp"):
                event.event.event_id = uuid.uuid4().hex
        yield RecordEventsRequest(events=chunk)


def add_response(total: RecordEventsResponse, response: RecordEventsResponse, first_index: int) -> None:
    """Adds one response to `total`. `first_index` is added to the indexes of events."""
    total.stored_count += response.stored_count
    total.duplicate_count += response.duplicate_count
    total.too_old_count += response.too_old_count
    for warning in response.warnings:
        warning.field = re.sub(r"\d+", lambda index: str(first_index + int(index[0])), warning.field, count=1)
        known = {(earlier.reason, earlier.value) for earlier in total.warnings}
        if len(known) < MAX_WARNINGS and (warning.reason, warning.value) not in known:
            total.warnings.append(warning)
    for refused in response.refused:
        total.refused.add(index=first_index + refused.index, status=refused.status)
