"""The blocking stream: sends user ids, yields rows, and reconnects when the connection is lost."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import Any, Generic, Self

import grpc

from segrec.errors import SegrecError, StreamStalled, error_of_call
from segrec.v1.common_pb2 import Warning  # noqa: A004 - the name is that of the API
from segrec.v1.segrec_service_pb2 import StreamSummary
from segrec.window import Request, Response, RowT, StreamSettings, Window, can_resume

OpenCall = Callable[..., Any]
"""A stub's stream method. The generated types of the two streams have no common type, hence `Any`."""


class RowStream(Generic[RowT]):
    """The rows of a stream: one for each user id, in the order given, each exactly once.

    Iterate over the stream for rows, or over `chunks()` for lists of rows. A row holds a `result` or a `status`. The
    iterating thread reads the user ids, at most `max_in_flight` chunks ahead of the answers. After a lost connection
    the stream connects again, with growing pauses, and sends only the unanswered chunks again; it keeps its release.
    A degraded row is asked once more before it is returned.

    Iterating raises Unavailable when no connection succeeds, StreamStalled when no answer arrives, DataLoss when the
    rows or the server's counts do not match, FailedPrecondition with the reason RELEASE_GONE when the stream's release
    is no longer loaded, and the server's own errors.
    """

    def __init__(
        self,
        open_call: OpenCall,
        window: Window[RowT],
        user_ids: Iterable[str],
        settings: StreamSettings,
        address: str,
    ) -> None:
        self._open_call = open_call
        self._window = window
        self._user_ids = iter(user_ids)
        self._settings = settings
        self._address = address
        self._is_exhausted = False
        self._chunks = self._run()

    @property
    def counts(self) -> StreamSummary:
        """Counts of the rows received so far, over all connections."""
        return self._window.counts

    @property
    def summary(self) -> StreamSummary | None:
        """The server's counts for the last connection; None until the stream has ended.

        They equal the client's, where a degraded row that was asked again counts twice.
        """
        return self._window.summary

    @property
    def base_release(self) -> int:
        """The release that answers users outside the canary, on all connections; 0 until it is known."""
        return self._window.base_release

    @property
    def warnings(self) -> list[Warning]:
        """What the releases that answered so far do not know of the stream's options."""
        return list(self._window.warnings.values())

    def chunks(self) -> Iterator[list[RowT]]:
        """Lists of rows, one list for each answered chunk."""
        return self._chunks

    def __iter__(self) -> Iterator[RowT]:
        try:
            for rows in self._chunks:
                yield from rows
        finally:
            self.close()

    def close(self) -> None:
        """Cancels the call; unanswered chunks are dropped."""
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _run(self) -> Generator[list[RowT], None, None]:
        while True:
            connection = _Connection(self._open_call, self._window.reconnect(), self._address)
            try:
                yield from self._exchange(connection)
                return
            except SegrecError as error:
                pause = self._window.back_off(error) if can_resume(error) else None
                if pause is None:
                    raise
            finally:
                connection.close()
            threading.Event().wait(pause)

    def _exchange(self, connection: "_Connection") -> Iterator[list[RowT]]:
        while True:
            self._fill(connection)
            response = connection.receive(self._settings.stall_seconds)
            if response is None:
                self._window.check_end()
                return
            yield from self._window.accept(response)

    def _fill(self, connection: "_Connection") -> None:
        for request in self._window.repeats():
            connection.send(request)
        while not self._window.is_full and not self._is_exhausted:
            user_ids = list(islice(self._user_ids, self._settings.chunk_size))
            if user_ids:
                connection.send(self._window.add(user_ids))
            else:
                self._is_exhausted = True
        if self._is_exhausted and self._window.is_empty and not connection.is_finished:
            connection.finish()


class _Connection:
    """One streaming call. A separate thread reads the answers, so that waiting has a limit and Ctrl-C works."""

    def __init__(self, open_call: OpenCall, requests: list[Request], address: str) -> None:
        self._address = address
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._responses: queue.SimpleQueue[Response | grpc.RpcError | None] = queue.SimpleQueue()
        self.is_finished = False
        for request in requests:
            self._requests.put(request)
        self._call = open_call(iter(self._requests.get, None))
        threading.Thread(target=self._read, name="segrec-stream", daemon=True).start()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._responses.put(response)
            self._responses.put(None)
        except grpc.RpcError as error:
            self._responses.put(error)

    def send(self, request: Request) -> None:
        self._requests.put(request)

    def finish(self) -> None:
        """Closes the sending side; the server may still answer."""
        self.is_finished = True
        self._requests.put(None)

    def receive(self, timeout_seconds: float) -> Response | None:
        """The next answer; None at the end of the stream."""
        try:
            response = self._responses.get(timeout=timeout_seconds)
        except queue.Empty:
            message = f"{self._address} has sent no answer for {timeout_seconds:g} s, so the stream was cancelled"
            raise StreamStalled(message, reason="STREAM_STALLED") from None
        if isinstance(response, grpc.RpcError):
            raise error_of_call(response, self._address)
        return response

    def close(self) -> None:
        self._call.cancel()
        self._requests.put(None)
