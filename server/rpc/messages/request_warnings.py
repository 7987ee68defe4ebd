"""Warnings about what a release does not know of a request: items, actions and categories."""

from collections.abc import Container, Iterable

from segrec.v1.common_pb2 import (
    WARNING_REASON_UNKNOWN_ACTION,
    WARNING_REASON_UNKNOWN_CATEGORY,
    WARNING_REASON_UNKNOWN_ITEM,
    Event,
    Warning,  # noqa: A004 - the name is that of the API
    WarningReason,
)
from segrec.v1.segrec_service_pb2 import RecommendOptions, RecommendRequest, SegmentRequest

from server.core.release import Release

MOST_WARNINGS = 20


class RequestWarnings:
    """Collects warnings, each value once. Costs a look-up for each value that is known."""

    def __init__(self, release: Release) -> None:
        self._release = release
        self._found: dict[tuple[WarningReason, str], str] = {}

    def add_events(self, events: Iterable[tuple[str, Event]]) -> None:
        """Look at events, each with its field path."""
        items, actions = self._release.vocabulary, self._release.action_names
        for field, event in events:
            if event.item_id not in items:
                self._add(WARNING_REASON_UNKNOWN_ITEM, f"{field}.item_id", event.item_id)
            if event.action not in actions:
                self._add(WARNING_REASON_UNKNOWN_ACTION, f"{field}.action", event.action)

    def add_options(self, options: RecommendOptions, field: str = "options") -> None:
        """Look at the filters and candidates of a recommendation."""
        items, categories = self._release.vocabulary, self._release.category_rows
        for name in ("exclude_item_ids", "candidate_item_ids"):
            if values := getattr(options, name):
                self._add_unknown(WARNING_REASON_UNKNOWN_ITEM, f"{field}.{name}", values, items)
        for name in ("exclude_categories", "include_categories"):
            if values := getattr(options, name):
                self._add_unknown(WARNING_REASON_UNKNOWN_CATEGORY, f"{field}.{name}", values, categories)

    def _add_unknown(self, reason: WarningReason, field: str, values: Iterable[str], known: Container[str]) -> None:
        for index, value in enumerate(values):
            if value not in known:
                self._add(reason, f"{field}[{index}]", value)

    def _add(self, reason: WarningReason, field: str, value: str) -> None:
        if len(self._found) < MOST_WARNINGS:
            self._found.setdefault((reason, value), field)

    def messages(self) -> list[Warning]:
        """The warnings, in the order in which they were found; at most `MOST_WARNINGS`."""
        return [Warning(reason=reason, field=field, value=value) for (reason, value), field in self._found.items()]


def warnings_of(
    release: Release, request: SegmentRequest | RecommendRequest, options: RecommendOptions | None = None
) -> list[Warning]:
    """What a release does not know of the inline events of a request and of its options."""
    found = RequestWarnings(release)
    if options is not None:
        found.add_options(options)
    if request.HasField("events"):
        found.add_events((f"events.events[{index}]", event) for index, event in enumerate(request.events.events))
    return found.messages()
