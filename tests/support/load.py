"""Traffic against a server while something is done to it: what each caller saw, and for how long it was worse."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc
from segrec.v1 import event_service_pb2, segrec_service_pb2
from segrec.v1.common_pb2 import Event
from segrec.v1.event_service_pb2_grpc import EventServiceStub
from segrec.v1.segrec_service_pb2_grpc import SegrecServiceStub

CALLERS = 8
CALL_SECONDS = 5.0


@dataclass
class Seen:
    """What the callers saw, in the order of time: (second, outcome); outcome is OK, DEGRADED or a status code."""

    outcomes: list[tuple[float, str]] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    """Event ids that the server said are stored."""

    def counts(self) -> dict[str, int]:
        """Calls by outcome."""
        return dict(Counter(outcome for _, outcome in self.outcomes))

    def recovery_seconds(self, since: float) -> float:
        """From `since` until the last call that was not OK; 0 when all were."""
        return max((second - since for second, outcome in self.outcomes if outcome != "OK"), default=0.0)


class Load:
    """Callers of Segment, and one that records events for a user `recorder`, from entering to leaving the block."""

    def __init__(self, address: str, user_ids: list[str]) -> None:
        self.seen = Seen()
        self._address = address
        self._user_ids = user_ids
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]
        self._threads.append(threading.Thread(target=self._record))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_answers(self, count: int, timeout: float = 60.0) -> None:
        """Return when `count` more calls were OK."""
        deadline = time.monotonic() + timeout
        target = self._ok_count() + count
        while self._ok_count() < target:
            assert time.monotonic() < deadline, f"no {count} good answers within {timeout:g} s: {self.seen.counts()}"
            self._stop.wait(0.01)

    def _ok_count(self) -> int:
        return sum(outcome == "OK" for _, outcome in list(self.seen.outcomes))

    def _call(self, number: int) -> None:
        with _channel(self._address) as channel:
            stub = SegrecServiceStub(channel)
            turn = number
            while not self._stop.is_set():
                user_id = self._user_ids[turn % len(self._user_ids)]
                turn += CALLERS
                try:
                    answer = stub.Segment(segrec_service_pb2.SegmentRequest(user_id=user_id), timeout=CALL_SECONDS)
                    outcome = "DEGRADED" if answer.info.degraded else "OK"
                except grpc.RpcError as error:
                    outcome = error.code().name
                    self._stop.wait(0.05)
                self.seen.outcomes.append((time.monotonic(), outcome))

    def _record(self) -> None:
        with _channel(self._address) as channel:
            stub = EventServiceStub(channel)
            turn = 0
            while not self._stop.is_set():
                turn += 1
                event = Event(item_id=f"item-{turn % 50 + 1:03d}", action="view", event_id=f"load-{turn}")
                request = event_service_pb2.RecordEventsRequest(
                    events=[event_service_pb2.UserEvent(user_id="recorder", event=event)]
                )
                try:
                    response = stub.RecordEvents(request, timeout=CALL_SECONDS)
                except grpc.RpcError:
                    self._stop.wait(0.05)
                    continue
                if response.stored_count:
                    self.seen.acknowledged.append(event.event_id)


def _channel(address: str) -> grpc.Channel:
    options = (("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 50))
    return grpc.insecure_channel(address, options=options)
