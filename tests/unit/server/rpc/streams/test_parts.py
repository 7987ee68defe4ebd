"""How chunks are cut into parts by the number of items."""

from collections.abc import AsyncIterator

import pytest
from segrec.v1.segrec_service_pb2 import UserChunk

from server.rpc.streams.parts import PART_ITEMS, parts_by_items


async def parts(users: int, top_k: int) -> list[tuple[int, int, bool]]:
    """(first, number of users, whether it is the last) of each part of one chunk."""

    async def chunks() -> AsyncIterator[UserChunk]:
        yield UserChunk(user_ids=[f"u{number}" for number in range(users)])

    found = []
    async for part in parts_by_items(chunks(), lambda: top_k):
        assert list(part.user_ids) == [f"u{part.first + number}" for number in range(len(part.user_ids))]
        assert part.is_whole == (len(part.user_ids) == users)
        found.append((part.first, len(part.user_ids), part.is_last))
    return found


@pytest.mark.parametrize(("users", "top_k"), [(1024, 10), (20, 500), (0, 500), (1025, 500)])
async def test_a_chunk_of_few_items_and_a_chunk_to_be_refused_are_one_part(users: int, top_k: int) -> None:
    assert await parts(users, top_k) == [(0, users, True)]


@pytest.mark.parametrize(("users", "top_k"), [(1024, 500), (1024, 11), (41, 500), (40, 500)])
async def test_a_chunk_of_many_items_is_cut_into_parts_without_losing_a_user(users: int, top_k: int) -> None:
    found = await parts(users, top_k)
    assert len(found) > 1
    assert all(count * top_k <= PART_ITEMS for _, count, _ in found)
    assert [is_last for _, _, is_last in found] == [False] * (len(found) - 1) + [True]
    assert [first for first, _, _ in found] == [sum(count for _, count, _ in found[:n]) for n in range(len(found))]
    assert sum(count for _, count, _ in found) == users
