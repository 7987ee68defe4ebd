"""CatalogueService against the real server: what a release knows, page by page, and what is refused."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from segrec import AsyncSegrecClient, SegrecClient
from segrec.cli import main
from segrec.errors import InvalidArgument, NotFound
from segrec.v1 import catalogue_service_pb2 as pb

from tests.support.releases import ACTIONS, item_id
from tests.support.server import ServerProcess, Stubs

ITEMS = 50


@pytest.fixture
def client(running_server: ServerProcess) -> Iterator[SegrecClient]:
    with SegrecClient(running_server.address, timeout_seconds=20) as connected:
        yield connected


def test_pages_hold_each_item_once_the_most_popular_first(stubs: Stubs) -> None:
    request, found, sizes = pb.ListItemsRequest(page_size=20), [], []
    while True:
        response = stubs.catalogue.ListItems(request)
        assert (response.total_size, response.release) == (ITEMS, 3)
        found += [item.item_id for item in response.items]
        sizes.append(len(response.items))
        request.page_token = response.next_page_token
        if not request.page_token:
            break
    assert sizes == [20, 20, 10]
    # Popularity falls from the item whose number is the release's.
    assert found == [item_id((2 + place) % ITEMS + 1) for place in range(ITEMS)]


def test_filters_and_the_client_that_pages_by_itself(client: SegrecClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segrec.client.MAX_PAGE_SIZE", 5)
    of_category = [item.item_id for item in client.list_items(category="category-2")]
    assert sorted(of_category) == [item_id(number) for number in range(2, ITEMS + 1, 4)]
    of_title = [item.title for item in client.list_items(title_prefix="ITEM 4")]
    assert len(of_title) == 11
    assert all(title.startswith("Item 4") for title in of_title)
    both = client.list_items(category="category-4", title_prefix="item 4", release="stable")
    assert sorted(item.item_id for item in both) == [item_id(number) for number in (4, 40, 44, 48)]
    assert list(client.list_items(title_prefix="nothing begins so")) == []
    assert len(list(islice(client.list_items(), 7))) == 7


async def test_asyncio_clients_page_too(running_server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segrec.aio.MAX_PAGE_SIZE", 20)
    async with AsyncSegrecClient(running_server.address, timeout_seconds=20) as client:
        assert len([item async for item in client.list_items()]) == ITEMS
        assert (await client.get_item(item_id(7))).title == "Item 7 of release 3"
        assert [category.name async for category in client.list_categories()] == [
            "category-1",
            "category-2",
            "category-3",
            "category-4",
        ]


def test_one_item_categories_and_actions(client: SegrecClient) -> None:
    item = client.get_item(item_id(3), timeout=10)
    assert (item.title, list(item.categories)) == ("Item 3 of release 3", ["category-3"])
    shares = [entry.popularity_share for entry in client.list_items()]
    assert item.popularity_share == max(shares)
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert [(entry.name, entry.item_count) for entry in client.list_categories()] == [
        ("category-1", 13),
        ("category-2", 13),
        ("category-3", 12),
        ("category-4", 12),
    ]
    assert {action.name for action in client.list_actions()} == set(ACTIONS)


@pytest.mark.parametrize(
    ("call", "field", "sentence"),
    [
        (lambda client: client.get_item("item-2"), "item_id", "release 3 has no item 'item-2'"),
        (lambda client: list(client.list_items(category="category2")), "category", "did you mean 'category-2'"),
        (lambda client: list(client.list_items(category="?")), "category", "ListCategories names"),
        (lambda client: client.get_item("item-002", release=9), "release", "release 9 is not loaded"),
    ],
)
def test_what_the_release_does_not_know_is_not_found(
    client: SegrecClient, call: Any, field: str, sentence: str
) -> None:
    with pytest.raises(NotFound, match=sentence) as caught:
        call(client)
    assert caught.value.field == field


def test_tokens_and_sizes_of_no_page_are_refused(stubs: Stubs, client: SegrecClient) -> None:
    token = stubs.catalogue.ListItems(pb.ListItemsRequest(page_size=1)).next_page_token
    for request, field in (
        (pb.ListItemsRequest(page_token=token, category="category-1"), "page_token"),
        (pb.ListItemsRequest(page_token="nonsense"), "page_token"),
        (pb.ListItemsRequest(page_token="Ä" * 300), "page_token"),
        (pb.ListItemsRequest(page_size=-1), "page_size"),
        (pb.ListItemsRequest(title_prefix="x" * 257), "title_prefix"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            client._call(stubs.catalogue.ListItems, request, {})
        assert caught.value.field == field
    with pytest.raises(InvalidArgument, match="other filters"):
        client._call(stubs.catalogue.ListCategories, pb.ListCategoriesRequest(page_token=token), {})


def test_commands_show_what_a_release_knows(running_server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str]:
        code = main.main([*words, "--address", running_server.address, "--timeout", "20"])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, out = run("items", "--category", "category-2", "--limit", "2")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["item", "item-006", "item-010"]
    assert '"categories": ["category-2"]' in run("items", "item-002", "--json")[1]
    assert run("items", "--title", "zzz") == (0, "nothing found\n")
    assert "category-1" in run("categories")[1]
    assert "view" in run("actions", "--release", "stable")[1]
    assert run("items", "item-2") == (3, "segrec: release 3 has no item 'item-2'\n")


def test_similar_items_are_of_the_items_group_and_filtered(
    client: SegrecClient, capsys: pytest.CaptureFixture[str]
) -> None:
    found = client.similar_items(item_id(2), top_k=5)
    assert found.release == 3
    assert len(found.items) == 5
    assert {int(item.item_id[-3:]) % 4 for item in found.items} == {2}, "the items of its group"
    assert item_id(2) not in {item.item_id for item in found.items}
    similarity = [item.similarity for item in found.items]
    assert similarity == sorted(similarity, reverse=True)
    assert -1 <= similarity[-1] <= similarity[0] <= 1
    elsewhere = client.similar_items(
        item_id(2), top_k=50, exclude_categories=["category-2"], candidate_item_ids=[item_id(6), item_id(7)]
    )
    assert [item.item_id for item in elsewhere.items] == [item_id(7)]
    with pytest.raises(NotFound, match="has no item 'none'") as caught:
        client.similar_items("none")
    assert (caught.value.reason, caught.value.field) == ("ITEM_NOT_FOUND", "item_id")
    with pytest.raises(InvalidArgument, match="top_k is 501"):
        client.similar_items(item_id(2), top_k=501)
    address = ["--address", client._address]
    assert main.main(["similar", item_id(2), "--top-k", "2", "--category", "category-2", *address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["item", "id", "title", "similarity"]
    assert [line.split()[0] for line in lines[1:]] == [item.item_id for item in found.items[:2]]


async def test_similar_items_by_the_asyncio_client(running_server: ServerProcess) -> None:
    async with AsyncSegrecClient(running_server.address, timeout_seconds=20) as client:
        assert len((await client.similar_items(item_id(3), top_k=4)).items) == 4
