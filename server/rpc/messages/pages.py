"""Pages of lists (AIP-158): a token holds the release of the first page, the next index, and a mark of the filters."""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from server.core.errors import InvalidArgument

T = TypeVar("T")

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_TOKEN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Page:
    """Where a page begins. `release` is that of the first page; 0 on the first page itself."""

    size: int
    mark: str
    release: int = 0
    start: int = 0

    @classmethod
    def of(cls, page_size: int, page_token: str, *filters: object) -> Self:
        """The page that a request asks for. Raises `InvalidArgument` for a token of another list or other filters."""
        if page_size < 0:
            raise InvalidArgument(
                f"page_size is {page_size}; give 1 to {MAX_PAGE_SIZE}, or 0",
                "page_size",
                reason="PAGE_SIZE_OUT_OF_RANGE",
            )
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        mark = hashlib.sha256(json.dumps(filters).encode()).hexdigest()[:16]
        if not page_token:
            return cls(size, mark)
        release, start, sent_mark = _read(page_token)
        if sent_mark != mark:
            message = "page_token is of a list with other filters: send the filters of its first page"
            raise InvalidArgument(message, "page_token", reason="PAGE_TOKEN_INVALID")
        return cls(size, mark, release, start)

    def cut(self, entries: Sequence[T], release: int) -> "Cut[T]":
        """The entries of this page, and the token of the next one."""
        end = self.start + self.size
        token = "" if end >= len(entries) else _written(release, end, self.mark)
        return Cut(entries[self.start : end], token, len(entries))

    def cut_from_newest(self, newest_first: Sequence[T], number_of: Callable[[T], int]) -> "Cut[T]":
        """The entries of this page of a list that grows at its head: entries that come later move no page.

        `number_of` gives each entry a number from 1 that falls along the list and stays the same.
        """
        rest = [entry for entry in newest_first if not self.start or number_of(entry) < self.start]
        shown = rest[: self.size]
        token = _written(1, number_of(shown[-1]), self.mark) if len(rest) > len(shown) else ""
        return Cut(shown, token, len(newest_first))


@dataclass(frozen=True, slots=True)
class Cut(Generic[T]):
    """The entries of one page, the token of the next page (empty on the last), and how many entries there are."""

    entries: Sequence[T]
    next_page_token: str
    total_size: int


def _written(release: int, start: int, mark: str) -> str:
    return urlsafe_b64encode(f"{release}.{start}.{mark}".encode()).decode().rstrip("=")


def _read(token: str) -> tuple[int, int, str]:
    """Release, start and mark of a token. Raises `InvalidArgument`."""
    try:
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise ValueError
        release, start, mark = urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode("ascii").split(".")
        if int(release) < 1 or int(start) < 1:
            raise ValueError
        return int(release), int(start), mark
    except ValueError as error:
        message = "page_token is none that this server has sent: send the next_page_token of the page before"
        raise InvalidArgument(message, "page_token", reason="PAGE_TOKEN_INVALID") from error
