"""Validates requests and converts them to core values. Every refusal is an `InvalidArgument` that names the field."""

import math
import re
from collections.abc import Callable, Iterable

from segrec.reading.words import BLANKS
from segrec.v1.catalogue_service_pb2 import (
    GetItemRequest,
    ListActionsRequest,
    ListCategoriesRequest,
    ListItemsRequest,
    SimilarItemsRequest,
)
from segrec.v1.common_pb2 import Event as EventMessage
from segrec.v1.common_pb2 import EventList, ReleaseAlias
from segrec.v1.segrec_service_pb2 import (
    GetSegmentRequest,
    ListSegmentsRequest,
    RecommendOptions,
    RecommendRequest,
    SegmentRequest,
    StreamRecommendConfig,
    StreamSegmentConfig,
)

from server.core.errors import InvalidArgument
from server.core.history import ID_MAX_BYTES, Event, History, history_of
from server.core.ranking.filters import ItemFilters
from server.core.ranking.query import Query, Strategy
from server.core.ranking.similar import SimilarQuery
from server.releases.routing import NO_PIN, Alias, Pin
from server.rpc.messages.decoding import NOT_UTF8

MAX_USERS_PER_CHUNK = 1024
MAX_EVENTS = 4096
MAX_RECORDED_EVENTS = 1024
DEFAULT_TOP_K = 10
MAX_TOP_K = 500
MAX_ITEM_IDS = 1000
MAX_CATEGORIES = 100
FUTURE_TOLERANCE_SECONDS = 300
LARGEST_SECONDS = 253_402_300_799  # end of the year 9999, the limit of google.protobuf.Timestamp

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_STRATEGIES = {
    0: Strategy.HYBRID,
    1: Strategy.HYBRID,
    2: Strategy.PERSONAL,
    3: Strategy.SEGMENT,
    4: Strategy.POPULAR,
}
_ALIASES = {
    ReleaseAlias.RELEASE_ALIAS_STABLE: Alias.STABLE,
    ReleaseAlias.RELEASE_ALIAS_CANARY: Alias.CANARY,
}

Pinning = (
    SegmentRequest
    | RecommendRequest
    | StreamSegmentConfig
    | StreamRecommendConfig
    | ListSegmentsRequest
    | GetSegmentRequest
    | ListItemsRequest
    | GetItemRequest
    | SimilarItemsRequest
    | ListCategoriesRequest
    | ListActionsRequest
)
"""A message that can pin a release."""


def is_plain(value: str) -> bool:
    """Whether an id is printable ASCII of an allowed length: a fast check that nearly all ids pass."""
    return (
        0 < len(value) <= ID_MAX_BYTES
        and value.isascii()
        and value.isprintable()
        and value[0] != " "
        and value[-1] != " "
    )


def checked_id(value: str, field: str) -> str:
    """The id itself. Raises `InvalidArgument` unless the id is 1 to 256 bytes of UTF-8 without control characters.

    Blanks at its ends are refused too: readers of files cut them, so such an id would never be found.
    """
    if is_plain(value):
        return value
    if not value:
        raise InvalidArgument(f"{field} is empty", field, reason="ID_EMPTY")
    if value.startswith(NOT_UTF8):
        raise InvalidArgument(f"{field} is not valid UTF-8", field, reason="ID_NOT_UTF8")
    size = len(value.encode())
    if size > ID_MAX_BYTES:
        raise InvalidArgument(
            f"{field} has {size} bytes; at most {ID_MAX_BYTES} are allowed", field, reason="ID_TOO_LONG"
        )
    if _CONTROL.search(value):
        raise InvalidArgument(f"{field} has a control character", field, reason="ID_CONTROL_CHARACTER")
    if value != value.strip(BLANKS):
        raise InvalidArgument(f"{field} begins or ends with a blank: cut it off", field, reason="ID_BLANK_AT_END")
    return value


def _checked_event_id(value: str, field: str) -> str:
    return checked_id(value, field) if value else ""


def _timestamp(message: EventMessage, field: str, now_seconds: float) -> int:
    """The event's time in milliseconds since 1970."""
    seconds = message.timestamp.seconds
    if not 0 <= message.timestamp.nanos < 1_000_000_000 or not 0 <= seconds <= LARGEST_SECONDS:
        raise InvalidArgument(
            f"{field}.timestamp lies before 1970 or is not a valid time",
            f"{field}.timestamp",
            reason="TIMESTAMP_OUT_OF_RANGE",
        )
    if seconds > now_seconds + FUTURE_TOLERANCE_SECONDS:
        raise InvalidArgument(
            f"{field}.timestamp lies {seconds - now_seconds:.0f} s in the future; at most "
            f"{FUTURE_TOLERANCE_SECONDS} are allowed",
            f"{field}.timestamp",
            reason="TIMESTAMP_IN_FUTURE",
        )
    return seconds * 1000 + message.timestamp.nanos // 1_000_000


def event_of(message: EventMessage, field: str, now_seconds: float) -> Event:
    """The event of a message; an event without a timestamp happened now, an event without a value has NaN."""
    value = message.value if message.HasField("value") else math.nan
    if message.HasField("value") and not math.isfinite(value):
        raise InvalidArgument(f"{field}.value is not a finite number", f"{field}.value", reason="VALUE_NOT_FINITE")
    has_time = message.HasField("timestamp")
    return Event(
        checked_id(message.item_id, f"{field}.item_id"),
        checked_id(message.action, f"{field}.action"),
        value,
        _timestamp(message, field, now_seconds) if has_time else int(now_seconds * 1000),
        _checked_event_id(message.event_id, f"{field}.event_id"),
    )


def inline_history(events: EventList, now_seconds: float) -> History:
    """The history of a request's inline events, sorted by time.

    When an event has no timestamp, all events stay in the order of the request and get times that do not decrease.
    """
    if not 1 <= len(events.events) <= MAX_EVENTS:
        raise InvalidArgument(
            f"events has {len(events.events)} events; 1 to {MAX_EVENTS} are allowed",
            "events.events",
            reason="EVENT_COUNT_OUT_OF_RANGE",
        )
    checked = [event_of(message, f"events.events[{i}]", now_seconds) for i, message in enumerate(events.events)]
    if all(message.HasField("timestamp") for message in events.events):
        return history_of(checked)
    in_request_order: list[Event] = []
    latest = 0
    for message, event in zip(events.events, checked, strict=True):
        latest = max(latest, event.timestamp) if message.HasField("timestamp") else latest
        in_request_order.append(Event(event.item_id, event.action, event.value, latest, event.event_id))
    return history_of(in_request_order)


def query_of(options: RecommendOptions, field: str = "options") -> Query:
    """The query of the options, with defaults for unset fields."""
    top_k = _top_k(options, f"{field}.top_k")
    if options.strategy not in _STRATEGIES:
        raise InvalidArgument(
            f"{field}.strategy {options.strategy} is unknown", f"{field}.strategy", reason="STRATEGY_UNKNOWN"
        )
    diversity = options.diversity
    if not 0.0 <= diversity <= 1.0:
        raise InvalidArgument(
            f"{field}.diversity is {diversity:g}; 0 to 1 are allowed",
            f"{field}.diversity",
            reason="DIVERSITY_OUT_OF_RANGE",
        )
    return Query(
        top_k,
        _STRATEGIES[options.strategy],
        options.exclude_seen if options.HasField("exclude_seen") else None,
        _checked_ids(options.exclude_item_ids, f"{field}.exclude_item_ids", MAX_ITEM_IDS),
        _checked_ids(options.exclude_categories, f"{field}.exclude_categories", MAX_CATEGORIES),
        _checked_ids(options.include_categories, f"{field}.include_categories", MAX_CATEGORIES),
        _checked_ids(options.candidate_item_ids, f"{field}.candidate_item_ids", MAX_ITEM_IDS),
        diversity,
        options.include_variants,
        options.explain,
    )


def similar_query_of(request: SimilarItemsRequest) -> SimilarQuery:
    """The query of a request for similar items, with defaults for unset fields."""
    filters = ItemFilters(
        _checked_ids(request.exclude_item_ids, "exclude_item_ids", MAX_ITEM_IDS),
        _checked_ids(request.exclude_categories, "exclude_categories", MAX_CATEGORIES),
        _checked_ids(request.include_categories, "include_categories", MAX_CATEGORIES),
        _checked_ids(request.candidate_item_ids, "candidate_item_ids", MAX_ITEM_IDS),
    )
    return SimilarQuery(_top_k(request, "top_k"), filters, request.include_variants)


def _top_k(message: RecommendOptions | SimilarItemsRequest, field: str) -> int:
    top_k = message.top_k if message.HasField("top_k") else DEFAULT_TOP_K
    if not 1 <= top_k <= MAX_TOP_K:
        raise InvalidArgument(f"{field} is {top_k}; 1 to {MAX_TOP_K} are allowed", field, reason="TOP_K_OUT_OF_RANGE")
    return top_k


def _checked_ids(values: Iterable[str], field: str, most: int) -> tuple[str, ...]:
    ids = tuple(values)
    if len(ids) > most:
        raise InvalidArgument(
            f"{field} has {len(ids)} entries; at most {most} are allowed", field, reason="TOO_MANY_ENTRIES"
        )
    return tuple(checked_id(value, f"{field}[{i}]") for i, value in enumerate(ids))


def pin_of(message: Pinning) -> Pin:
    """The pin of a message, `NO_PIN` when it names no release."""
    named = message.WhichOneof("pin")
    if named == "release":
        if message.release < 1:
            raise InvalidArgument(
                f"release is {message.release}; give a number from 1, or leave it unset",
                "release",
                reason="RELEASE_OUT_OF_RANGE",
            )
        return Pin(message.release)
    if named == "release_alias":
        if message.release_alias not in _ALIASES:
            raise InvalidArgument(
                f"release_alias {message.release_alias} is unknown", "release_alias", reason="RELEASE_ALIAS_UNKNOWN"
            )
        return Pin(alias=_ALIASES[message.release_alias])
    return NO_PIN


def routing_key(request: SegmentRequest | RecommendRequest) -> str:
    """What the traffic chooses the release by: the user id, or the session key; empty for a history without a key."""
    if request.WhichOneof("subject") == "user_id":
        if request.session_key:
            message = "session_key is for a history given in the request: the id of a stored user chooses the release"
            raise InvalidArgument(message, "session_key", reason="SESSION_KEY_WITHOUT_EVENTS")
        return request.user_id
    return checked_id(request.session_key, "session_key") if request.session_key else ""


def in_range(value: int, smallest: int, largest: int, field: str, reason: str) -> int:
    """The value itself. Raises `InvalidArgument` when the value is out of range."""
    if not smallest <= value <= largest:
        raise InvalidArgument(f"{field} is {value}; {smallest} to {largest} are allowed", field, reason=reason)
    return value


Clock = Callable[[], float]
"""Seconds since the epoch."""
