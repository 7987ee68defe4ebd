"""The asyncio stream: `segrec.streaming` for `async for`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Generic, Self

import grpc

from segrec.errors import SegrecError, StreamStalled, error_of_call
from segrec.streaming import OpenCall
from segrec.v1.common_pb2 import Warning  # noqa: A004 - the name is that of the API
from segrec.v1.segrec_service_pb2 import StreamSummary
from segrec.window import Request, Response, RowT, StreamSettings, Window, can_resume

UserIds = Iterable[str] | AsyncIterable[str]


class AsyncRowStream(Generic[RowT]):
    """`segrec.streaming.RowStream` for `async for`.

    Close the stream, or use `async with`, when the loop may end before the stream does.
    """

    def __init__(
        self,
        open_call: OpenCall,
        window: Window[RowT],
        user_ids: UserIds,
        settings: StreamSettings,
        address: str,
    ) -> None:
        self._open_call = open_call
        self._window = window
        self._user_ids = aiter(user_ids) if isinstance(user_ids, AsyncIterable) else _as_async(user_ids)
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

    def chunks(self) -> AsyncIterator[list[RowT]]:
        """Lists of rows, one list for each answered chunk."""
        return self._chunks

    async def __aiter__(self) -> AsyncIterator[RowT]:
        async with aclosing(self._chunks):
            async for rows in self._chunks:
                for row in rows:
                    yield row

    async def close(self) -> None:
        """Cancels the call; unanswered chunks are dropped."""
        await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self) -> AsyncGenerator[list[RowT], None]:
        while True:
            connection = _Connection(self._open_call, self._window.reconnect(), self._address)
            try:
                async with aclosing(self._exchange(connection)) as chunks:
                    async for rows in chunks:
                        yield rows
                return
            except SegrecError as error:
                pause = self._window.back_off(error) if can_resume(error) else None
                if pause is None:
                    raise
            finally:
                connection.close()
            await asyncio.sleep(pause)

    async def _exchange(self, connection: "_Connection") -> AsyncGenerator[list[RowT], None]:
        while True:
            await self._fill(connection)
            response = await connection.receive(self._settings.stall_seconds)
            if response is None:
                self._window.check_end()
                return
            for rows in self._window.accept(response):
                yield rows

    async def _fill(self, connection: "_Connection") -> None:
        for request in self._window.repeats():
            connection.send(request)
        while not self._window.is_full and not self._is_exhausted:
            user_ids: list[str] = []
            while len(user_ids) < self._settings.chunk_size:
                user_id = await anext(self._user_ids, None)
                if user_id is None:
                    break
                user_ids.append(user_id)
            if user_ids:
                connection.send(self._window.add(user_ids))
            else:
                self._is_exhausted = True
        if self._is_exhausted and self._window.is_empty and not connection.is_finished:
            connection.finish()


class _Connection:
    """One streaming call. A stall cancels the whole call, because a cancelled read leaks memory in grpc.aio."""

    def __init__(self, open_call: OpenCall, requests: list[Request], address: str) -> None:
        self._address = address
        self._requests: asyncio.Queue[Request | None] = asyncio.Queue()
        self._has_stalled = False
        self.is_finished = False
        for request in requests:
            self._requests.put_nowait(request)
        self._call = open_call(self._outgoing())

    async def _outgoing(self) -> AsyncIterator[Request]:
        while (request := await self._requests.get()) is not None:
            yield request

    def send(self, request: Request) -> None:
        self._requests.put_nowait(request)

    def finish(self) -> None:
        """Closes the sending side; the server may still answer."""
        self.is_finished = True
        self._requests.put_nowait(None)

    async def receive(self, timeout_seconds: float) -> Response | None:
        """The next answer; None at the end of the stream."""
        watchdog = asyncio.get_running_loop().call_later(timeout_seconds, self._cancel_stalled)
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise error_of_call(error, self._address) from error
        except asyncio.CancelledError:
            if not self._has_stalled:
                raise
            message = f"{self._address} has sent no answer for {timeout_seconds:g} s, so the stream was cancelled"
            raise StreamStalled(message, reason="STREAM_STALLED") from None
        finally:
            watchdog.cancel()
        return None if response is grpc.aio.EOF else response

    def _cancel_stalled(self) -> None:
        self._has_stalled = True
        self._call.cancel()

    def close(self) -> None:
        self._call.cancel()
        self._requests.put_nowait(None)


async def _as_async(user_ids: Iterable[str]) -> AsyncIterator[str]:
    for user_id in user_ids:
        yield user_id
