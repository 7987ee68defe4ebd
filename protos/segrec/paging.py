"""Puts the pages of a list together, for the blocking and the asyncio clients. No I/O."""

from typing import TypeVar

from segrec.errors import InvalidArgument
from segrec.requests import MAX_PAGE_SIZE
from segrec.v1.event_service_pb2 import ListEventsRequest, ListEventsResponse
from segrec.v1.model_service_pb2 import ListReleasesRequest, ListReleasesResponse
from segrec.v1.segrec_service_pb2 import ListSegmentsRequest, ListSegmentsResponse

Listing = ListEventsRequest | ListReleasesRequest | ListSegmentsRequest
Listed = TypeVar("Listed", ListEventsResponse, ListReleasesResponse, ListSegmentsResponse)


def first_page_size(limit: int) -> int:
    """The size of the first page of a list of which the newest `limit` are wanted. Raises InvalidArgument."""
    if limit < 1:
        raise InvalidArgument(f"limit is {limit}: give 1 or more", field="limit")
    return min(limit, MAX_PAGE_SIZE)


def next_page(request: Listing, token: str, wanted: int = MAX_PAGE_SIZE) -> bool:
    """Makes the request one for the page of this token; False without one, or when no more entries are wanted."""
    request.page_token = token
    request.page_size = min(max(wanted, 0), MAX_PAGE_SIZE)
    return bool(token) and wanted > 0


def add_page(listed: Listed, page: Listed) -> None:
    """Adds the entries of the next page to those that are listed already."""
    [name] = {"events", "releases", "segments"} & set(listed.DESCRIPTOR.fields_by_name)
    getattr(listed, name).extend(getattr(page, name))
    listed.next_page_token = page.next_page_token
