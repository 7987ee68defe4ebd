"""Which page of which release a list request asks for."""

from segrec.v1.catalogue_service_pb2 import ListActionsRequest, ListCategoriesRequest, ListItemsRequest
from segrec.v1.segrec_service_pb2 import ListSegmentsRequest

from server.releases.routing import Pin
from server.rpc.messages.pages import Page
from server.rpc.messages.validation import pin_of

Listing = ListActionsRequest | ListCategoriesRequest | ListItemsRequest | ListSegmentsRequest
"""A request for a page of what a release has."""


def page_of(request: Listing, *filters: str) -> tuple[Page, Pin]:
    """The page of a request, and its release: that of the first page, where this is a later one."""
    pin = pin_of(request)
    page = Page.of(request.page_size, request.page_token, type(request).__name__, pin.number, pin.alias.name, *filters)
    return page, Pin(page.release) if page.release else pin
