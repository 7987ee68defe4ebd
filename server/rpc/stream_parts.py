"""Chunks with many items are answered in parts, so that neither a message nor the memory for it grows without limit."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from segrec.v1.segrec_service_pb2 import StreamRecommendRequest, StreamSegmentRequest

from server.rpc.validation import MAX_USERS_PER_CHUNK

RequestT = TypeVar("RequestT")

DEFAULT_TOP_K = 10
PART_ITEMS = MAX_USERS_PER_CHUNK * DEFAULT_TOP_K
"""Most items in one answer: as many as a full chunk has with the default `top_k`; a message of about a megabyte."""


@dataclass(frozen=True, slots=True)
class ChunkPart(Generic[RequestT]):
    """Consecutive users of a chunk; `first` is the index of the first one in the chunk."""

    request: RequestT
    user_ids: Sequence[str]
    first: int = 0
    is_last: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether this is the whole chunk."""
        return self.is_last and self.first == 0


async def whole_chunks(
    requests: AsyncIterator[StreamSegmentRequest],
) -> AsyncGenerator[ChunkPart[StreamSegmentRequest], None]:
    """Each chunk as one part: segments are small."""
    async for request in requests:
        yield ChunkPart(request, request.user_ids)


async def parts_by_items(
    requests: AsyncIterator[StreamRecommendRequest],
) -> AsyncGenerator[ChunkPart[StreamRecommendRequest], None]:
    """Parts of at most `PART_ITEMS` items. A chunk that is too large, and so refused, is one part."""
    async for request in requests:
        user_ids = request.user_ids
        top_k = request.options.top_k if request.options.HasField("top_k") else DEFAULT_TOP_K
        size = max(PART_ITEMS // max(top_k, 1), 1)
        if len(user_ids) <= size or len(user_ids) > MAX_USERS_PER_CHUNK:
            yield ChunkPart(request, user_ids)
            continue
        for first in range(0, len(user_ids), size):
            part = user_ids[first : first + size]
            yield ChunkPart(request, part, first, is_last=first + size >= len(user_ids))
