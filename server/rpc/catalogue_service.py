"""`segrec.v1.CatalogueService`: the items, categories and actions that a release knows."""

import asyncio
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import islice
from math import exp

import numpy as np
from segrec.v1 import catalogue_service_pb2 as pb
from segrec.v1 import catalogue_service_pb2_grpc

from server.core.errors import InvalidArgument, NotFound
from server.core.history import ID_MAX_BYTES
from server.core.ranking.similar import similar_items
from server.core.release import Release
from server.releases.routing import Routing
from server.rpc.grpc_types import Context
from server.rpc.messages.listing import page_of
from server.rpc.messages.validation import checked_id, pin_of, similar_query_of

COMPARED_CATEGORIES = 10_000
"""Categories among which a similar name is looked for."""


class CatalogueServicer(catalogue_service_pb2_grpc.CatalogueServiceServicer):
    """Reads loaded releases. Lists of a large catalogue are made in a thread."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    async def ListItems(self, request: pb.ListItemsRequest, context: Context) -> pb.ListItemsResponse:
        category, prefix = _checked_filters(request)
        page, pin = page_of(request, category, prefix)
        with self._routing.lease(pin) as release:
            rows = await asyncio.to_thread(_item_rows, release, category, prefix)
            cut = page.cut(rows, release.number)
            return pb.ListItemsResponse(
                items=_item_messages(release, cut.entries),
                next_page_token=cut.next_page_token,
                total_size=cut.total_size,
                release=release.number,
            )

    async def GetItem(self, request: pb.GetItemRequest, context: Context) -> pb.GetItemResponse:
        item_id = checked_id(request.item_id, "item_id")
        release = self._routing.get(pin_of(request))
        [item] = _item_messages(release, [_row_of(release, item_id)])
        return pb.GetItemResponse(item=item, release=release.number)

    async def SimilarItems(self, request: pb.SimilarItemsRequest, context: Context) -> pb.SimilarItemsResponse:
        item_id, query = checked_id(request.item_id, "item_id"), similar_query_of(request)
        with self._routing.lease(pin_of(request)) as release:
            found = await asyncio.to_thread(similar_items, release, _row_of(release, item_id), query)
            items = [
                pb.SimilarItem(item_id=release.item_ids[row], title=release.titles[row], similarity=similarity)
                for row, similarity in found
            ]
            return pb.SimilarItemsResponse(items=items, release=release.number)

    async def ListCategories(self, request: pb.ListCategoriesRequest, context: Context) -> pb.ListCategoriesResponse:
        page, pin = page_of(request)
        release = self._routing.get(pin)
        categories = sorted(release.category_rows.items(), key=lambda named: (-len(named[1]), named[0]))
        cut = page.cut(categories, release.number)
        return pb.ListCategoriesResponse(
            categories=[pb.Category(name=name, item_count=len(rows)) for name, rows in cut.entries],
            next_page_token=cut.next_page_token,
            total_size=cut.total_size,
            release=release.number,
        )

    async def ListActions(self, request: pb.ListActionsRequest, context: Context) -> pb.ListActionsResponse:
        page, pin = page_of(request)
        release = self._routing.get(pin)
        actions = sorted(release.preprocessing.actions, key=lambda action: (-action.weight, action.name))
        cut = page.cut(actions, release.number)
        return pb.ListActionsResponse(
            actions=[
                pb.Action(name=action.name, other_names=action.raw_names, weight=action.weight)
                for action in cut.entries
            ],
            next_page_token=cut.next_page_token,
            total_size=cut.total_size,
            release=release.number,
        )


def _row_of(release: Release, item_id: str) -> int:
    index = release.vocabulary.get(item_id)
    if index is None:
        raise NotFound(f"release {release.number} has no item {item_id!r}", "item_id", reason="ITEM_NOT_FOUND")
    return index - 1


def _checked_filters(request: pb.ListItemsRequest) -> tuple[str, str]:
    for name in ("category", "title_prefix"):
        size = len(getattr(request, name).encode(errors="surrogatepass"))
        if size > ID_MAX_BYTES:
            raise InvalidArgument(
                f"{name} has {size} bytes; at most {ID_MAX_BYTES} are allowed", name, reason="TEXT_TOO_LONG"
            )
    return request.category, request.title_prefix


def _item_rows(release: Release, category: str, prefix: str) -> Sequence[int]:
    """Rows of the items that the filters allow, the most popular first."""
    allowed = np.ones(len(release.item_ids), np.bool_)
    if category:
        if category not in release.category_rows:
            raise NotFound(_no_category(release, category), "category", reason="CATEGORY_NOT_FOUND")
        allowed[:] = False
        allowed[release.category_rows[category]] = True
    if prefix:
        titles = release.items["title"].fill_null("")
        allowed &= titles.str.to_lowercase().str.starts_with(prefix.lower()).to_numpy()
    rows: list[int] = release.popular_rows[allowed[release.popular_rows]].tolist()
    return rows


def _no_category(release: Release, category: str) -> str:
    near = get_close_matches(category, islice(release.category_rows, COMPARED_CATEGORIES), n=1)
    hint = f": did you mean {near[0]!r}?" if near else ": ListCategories names those that there are"
    return f"release {release.number} has no category {category!r}{hint}"


def _item_messages(release: Release, rows: Sequence[int]) -> list[pb.Item]:
    categories = release.items["category"][list(rows)].to_list()
    return [
        pb.Item(
            item_id=release.item_ids[row],
            title=release.titles[row],
            categories=[name for name in names or () if name is not None],
            popularity_share=exp(float(release.popularity[row])),
        )
        for row, names in zip(rows, categories, strict=True)
    ]
