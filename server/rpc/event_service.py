"""`segrec.v1.EventService`: writes, reads and erases histories."""

import asyncio
from collections.abc import Iterable

from segrec.v1 import event_service_pb2 as pb
from segrec.v1 import event_service_pb2_grpc
from segrec.v1.common_pb2 import Warning  # noqa: A004 - the name is that of the API

from server.access.control import current_caller
from server.core.errors import Erased, InvalidArgument, Overloaded, SegrecError
from server.core.history import Event
from server.monitoring.metrics import Metrics
from server.releases.registry import ReleaseRegistry
from server.rpc.deadlines import seconds_left
from server.rpc.erasure_audit import ErasureAudit
from server.rpc.grpc_types import Context
from server.rpc.messages.conversion import event_message
from server.rpc.messages.erasure_receipt import remainders
from server.rpc.messages.errors import status_of
from server.rpc.messages.pages import Page
from server.rpc.messages.request_warnings import RequestWarnings
from server.rpc.messages.validation import MAX_RECORDED_EVENTS, Clock, checked_id, event_of
from server.serving.pipeline import Pipeline

STORE_SECONDS = 10.0
"""Longest wait for the history store in a call without a deadline."""


class EventServicer(event_service_pb2_grpc.EventServiceServicer):
    """Validates the requests and passes them to the pipeline, which reads and writes the history store."""

    def __init__(
        self,
        pipeline: Pipeline,
        releases: ReleaseRegistry,
        metrics: Metrics,
        clock: Clock,
        store_note: str,
        audit: ErasureAudit,
    ) -> None:
        """`store_note` says what the files of the store keep of an erased user, and until when."""
        self._pipeline = pipeline
        self._releases = releases
        self._metrics = metrics
        self._clock = clock
        self._store_note = store_note
        self._audit = audit

    async def RecordEvents(self, request: pb.RecordEventsRequest, context: Context) -> pb.RecordEventsResponse:
        """Store the valid events durably; the response names the refused events by their index.

        When the store takes none of them for now, the call fails as a whole, so that callers repeat it by themselves.
        """
        if not 1 <= len(request.events) <= MAX_RECORDED_EVENTS:
            raise InvalidArgument(
                f"events has {len(request.events)} entries; 1 to {MAX_RECORDED_EVENTS} are allowed",
                "events",
                reason="EVENT_COUNT_OUT_OF_RANGE",
            )
        current_caller().take_events(len(request.events))
        response = pb.RecordEventsResponse()
        by_user: dict[str, list[tuple[int, Event]]] = {}
        now = self._clock()
        for index, message in enumerate(request.events):
            try:
                user_id = checked_id(message.user_id, f"events[{index}].user_id")
                event = event_of(message.event, f"events[{index}].event", now)
            except InvalidArgument as error:
                _refuse(response, index, error)
                continue
            by_user.setdefault(user_id, []).append((index, event))
        seconds = seconds_left(context, STORE_SECONDS)
        failures = await asyncio.gather(
            *(self._store(user_id, events, response, seconds) for user_id, events in by_user.items())
        )
        overloads = [failure for failure in failures if isinstance(failure, Overloaded)]
        if overloads and len(overloads) == len(failures):
            raise overloads[0]
        response.warnings.extend(self._warnings_of(request, by_user.values()))
        response.refused.sort(key=lambda refused: refused.index)
        self._metrics.events.labels("stored").inc(response.stored_count)
        self._metrics.events.labels("duplicate").inc(response.duplicate_count)
        self._metrics.events.labels("too_old").inc(response.too_old_count)
        self._metrics.events.labels("refused").inc(len(response.refused))
        return response

    def _warnings_of(self, request: pb.RecordEventsRequest, valid: Iterable[list[tuple[int, Event]]]) -> list[Warning]:
        """What the active release does not know of the valid events; nothing without a release."""
        release = self._releases.active
        if release is None:
            return []
        found = RequestWarnings(release)
        indexes = sorted(index for events in valid for index, _ in events)
        found.add_events((f"events[{index}].event", request.events[index].event) for index in indexes)
        return found.messages()

    async def _store(
        self, user_id: str, events: list[tuple[int, Event]], response: pb.RecordEventsResponse, seconds: float
    ) -> SegrecError | None:
        """Add what became of a user's events to the response; returns why none was stored, if so."""
        try:
            recorded = await self._pipeline.record(user_id, [event for _, event in events], seconds)
        except SegrecError as error:
            for index, _ in events:
                _refuse(response, index, error)
            return error
        response.stored_count += recorded.stored
        response.duplicate_count += recorded.duplicates
        response.too_old_count += recorded.too_old
        for place in recorded.erased:
            index = events[place][0]
            _refuse(
                response,
                index,
                Erased(
                    "the event is from before its user was erased; record only what the user did since then",
                    f"events[{index}].event.timestamp",
                ),
            )
        return None

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        user_id = checked_id(request.user_id, "user_id")
        page = Page.of(request.page_size, request.page_token, "events", user_id)
        history = await self._pipeline.history(user_id, seconds_left(context, STORE_SECONDS))
        numbered = list(enumerate(history.events(), 1))[::-1]
        cut = page.cut_from_newest(numbered, lambda entry: entry[0])
        return pb.ListEventsResponse(
            events=[event_message(event) for _, event in cut.entries],
            next_page_token=cut.next_page_token,
            total_size=cut.total_size,
        )

    async def EraseUser(self, request: pb.EraseUserRequest, context: Context) -> pb.EraseUserResponse:
        user_id = checked_id(request.user_id, "user_id")
        erased = await self._pipeline.erase(
            user_id, self._releases.loaded_numbers(), seconds_left(context, STORE_SECONDS)
        )
        await self._audit.add(user_id, erased, context.peer())
        manifests = [self._releases.get(number).manifest for number in self._releases.loaded_numbers()]
        return pb.EraseUserResponse(erased_event_count=erased, remainders=remainders(self._store_note, manifests))


def _refuse(response: pb.RecordEventsResponse, index: int, error: SegrecError) -> None:
    response.refused.append(pb.RefusedEvent(index=index, status=status_of(error)))
