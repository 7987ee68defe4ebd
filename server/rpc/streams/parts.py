"""The chunks of a stream behind its configuration, those with many items in parts.

So neither a message nor the memory for it grows without limit.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from segrec.v1.segrec_service_pb2 import StreamRecommendRequest, StreamSegmentRequest, UserChunk

from server.core.errors import InvalidArgument, SegrecError
from server.rpc.messages.validation import DEFAULT_TOP_K, MAX_USERS_PER_CHUNK

PART_ITEMS = MAX_USERS_PER_CHUNK * DEFAULT_TOP_K
"""Most items in one answer: as many as a full chunk has with the default `top_k`; a message of about a megabyte."""


@dataclass(frozen=True, slots=True)
class ChunkPart:
    """Consecutive users of a chunk; `first` is the index of the first one in the chunk."""

    chunk_id: int
    user_ids: Sequence[str]
    first: int = 0
    is_last: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether this is the whole chunk."""
        return self.is_last and self.first == 0


async def configured_chunks(
    requests: AsyncIterator[StreamSegmentRequest] | AsyncIterator[StreamRecommendRequest],
    configure: Callable[[Any], None],
) -> AsyncGenerator[UserChunk, None]:
    """The chunks of a stream. `configure` is called with its configuration, before the first chunk.

    Raises `InvalidArgument` when the first message is no configuration, when another one is not a chunk, and with the
    field's path from `config` on when `configure` refuses the configuration.
    """
    is_configured = False
    async for request in requests:
        payload = request.WhichOneof("payload")
        if payload == "config" and is_configured:
            raise InvalidArgument(
                "a stream has one configuration, its first message", "config", reason="STREAM_CONFIG_REPEATED"
            )
        if payload == "config":
            try:
                configure(request.config)
            except SegrecError as error:
                error.field = f"config.{error.field}" if error.field else "config"
                raise
            is_configured = True
        elif not is_configured:
            raise InvalidArgument(
                "the first message of a stream is its configuration, which may be empty",
                "config",
                reason="STREAM_CONFIG_MISSING",
            )
        elif payload == "chunk":
            yield request.chunk
        else:
            raise InvalidArgument(
                "the message holds neither a configuration nor a chunk", "payload", reason="STREAM_MESSAGE_EMPTY"
            )
    if not is_configured:
        raise InvalidArgument(
            "the stream has ended without a message; the first one is its configuration",
            "config",
            reason="STREAM_CONFIG_MISSING",
        )


async def whole_chunks(chunks: AsyncIterator[UserChunk]) -> AsyncGenerator[ChunkPart, None]:
    """Each chunk as one part: segments are small."""
    async for chunk in chunks:
        yield ChunkPart(chunk.chunk_id, chunk.user_ids)


async def parts_by_items(chunks: AsyncIterator[UserChunk], top_k: Callable[[], int]) -> AsyncGenerator[ChunkPart, None]:
    """Parts of at most `PART_ITEMS` items. A chunk that is too large, and so refused, is one part.

    `top_k` says how many items a user gets; it is first called when a chunk has come.
    """
    async for chunk in chunks:
        user_ids = chunk.user_ids
        size = max(PART_ITEMS // top_k(), 1)
        if len(user_ids) <= size or len(user_ids) > MAX_USERS_PER_CHUNK:
            yield ChunkPart(chunk.chunk_id, user_ids)
            continue
        for first in range(0, len(user_ids), size):
            part = user_ids[first : first + size]
            yield ChunkPart(chunk.chunk_id, part, first, is_last=first + size >= len(user_ids))
