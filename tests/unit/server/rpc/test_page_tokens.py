"""Pages of lists that grow at their head."""

from server.rpc.messages.pages import Page


def page(token: str) -> Page:
    return Page.of(2, token, "releases")


def test_new_entries_at_the_head_move_no_page() -> None:
    first = page("").cut_from_newest([5, 4, 3, 2, 1], lambda number: number)
    second = page(first.next_page_token).cut_from_newest([7, 6, 5, 4, 3, 2, 1], lambda number: number)
    last = page(second.next_page_token).cut_from_newest([7, 6, 5, 4, 3, 2, 1], lambda number: number)
    assert [first.entries, second.entries, last.entries] == [[5, 4], [3, 2], [1]]
    assert (last.next_page_token, last.total_size) == ("", 7)


def test_an_entry_that_has_gone_meanwhile_hides_no_other() -> None:
    first = page("").cut_from_newest([5, 4, 3, 2], lambda number: number)
    assert page(first.next_page_token).cut_from_newest([5, 3, 2], lambda number: number).entries == [3, 2]
