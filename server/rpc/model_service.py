"""`segrec.v1.ModelService`: lists the releases and changes the traffic."""

import asyncio

from segrec.v1 import model_service_pb2 as pb
from segrec.v1 import model_service_pb2_grpc

from server.access.control import current_caller
from server.core.errors import InvalidArgument
from server.monitoring.release_stats import ReleaseStats
from server.releases.promotion import Promotion
from server.rpc.grpc_types import Context
from server.rpc.messages.conversion import release_message
from server.rpc.messages.pages import Page
from server.rpc.messages.traffic_messages import (
    MAX_NAME_BYTES,
    MAX_REASON_BYTES,
    checked_text,
    record_message,
    traffic_of,
)


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Reads the releases from the registry; changes the traffic through `Promotion`."""

    def __init__(self, promotion: Promotion, release_stats: ReleaseStats) -> None:
        self._release_stats = release_stats
        self._promotion = promotion
        self._releases = promotion.releases

    async def ListReleases(self, request: pb.ListReleasesRequest, context: Context) -> pb.ListReleasesResponse:
        page = Page.of(request.page_size, request.page_token, "releases")
        statuses = await asyncio.to_thread(self._releases.statuses)
        cut = page.cut_from_newest(statuses, lambda status: status.number)
        watcher = self._promotion.watcher
        return pb.ListReleasesResponse(
            releases=[release_message(status, self._release_stats.figures(status.number)) for status in cut.entries],
            next_page_token=cut.next_page_token,
            total_size=cut.total_size,
            traffic=record_message(self._releases.traffic),
            traffic_failure=watcher.failure,
        )

    async def GetRelease(self, request: pb.GetReleaseRequest, context: Context) -> pb.GetReleaseResponse:
        if request.release < 1:
            raise InvalidArgument(
                f"release is {request.release}; give a number from 1", "release", reason="RELEASE_OUT_OF_RANGE"
            )
        status = await asyncio.to_thread(self._releases.status, request.release)
        return pb.GetReleaseResponse(release=release_message(status, self._release_stats.figures(status.number)))

    async def SetTraffic(self, request: pb.SetTrafficRequest, context: Context) -> pb.SetTrafficResponse:
        changed_by, reason = _origin(request, context)
        if not request.HasField("traffic"):
            raise InvalidArgument("traffic is missing: give the new traffic", "traffic", reason="TRAFFIC_MISSING")
        traffic = await self._promotion.set(traffic_of(request.traffic), changed_by, reason, request.etag)
        return pb.SetTrafficResponse(traffic=record_message(traffic))

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.RollbackResponse:
        traffic, summary = await self._promotion.roll_back(*_origin(request, context), request.etag)
        return pb.RollbackResponse(traffic=record_message(traffic), summary=summary)


def _origin(request: pb.SetTrafficRequest | pb.RollbackRequest, context: Context) -> tuple[str, str]:
    """The author of a change and the reason for it, as the audit log names them."""
    changed_by = checked_text(request.changed_by, MAX_NAME_BYTES, "changed_by")
    reason = checked_text(request.reason, MAX_REASON_BYTES, "reason")
    name = current_caller().name
    if not name:
        return changed_by or f"a caller at {context.peer()}", reason
    return f"{name} ({changed_by})" if changed_by else name, reason
