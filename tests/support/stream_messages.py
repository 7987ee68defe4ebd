"""The messages of a stream: its configuration, then its chunks."""

from collections.abc import Iterator, Sequence
from typing import Any

from segrec.v1 import segrec_service_pb2 as pb


def segment_messages(*chunks: Sequence[str], first_id: int = 1, **config: Any) -> Iterator[pb.StreamSegmentRequest]:
    """A StreamSegment call of these chunks, with ids from `first_id`; `config` are fields of its configuration."""
    yield pb.StreamSegmentRequest(config=pb.StreamSegmentConfig(**config))
    for chunk_id, user_ids in enumerate(chunks, first_id):
        yield pb.StreamSegmentRequest(chunk=pb.UserChunk(chunk_id=chunk_id, user_ids=user_ids))


def recommend_messages(*chunks: Sequence[str], **config: Any) -> Iterator[pb.StreamRecommendRequest]:
    """A StreamRecommend call of these chunks, whose ids count from 1; `config` are fields of its configuration."""
    yield pb.StreamRecommendRequest(config=pb.StreamRecommendConfig(**config))
    for chunk_id, user_ids in enumerate(chunks, 1):
        yield pb.StreamRecommendRequest(chunk=pb.UserChunk(chunk_id=chunk_id, user_ids=user_ids))
