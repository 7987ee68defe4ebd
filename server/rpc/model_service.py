"""`segrec.v1.ModelService`."""

import asyncio

from segrec.v1 import model_service_pb2 as pb
from segrec.v1 import model_service_pb2_grpc

from server.core.errors import InvalidArgument
from server.monitoring.release_stats import ReleaseStats
from server.releases.promotion import Promotion
from server.rpc.authorisation import Authorisation
from server.rpc.conversion import release_message
from server.rpc.grpc_types import Context
from server.rpc.traffic_messages import (
    MAX_NAME_BYTES,
    MAX_REASON_BYTES,
    checked_text,
    record_message,
    wanted_of,
)


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Tells which releases there are, and has another one answer."""

    def __init__(self, promotion: Promotion, authorisation: Authorisation, live: ReleaseStats) -> None:
        self._live = live
        self._promotion = promotion
        self._releases = promotion.releases
        self._authorisation = authorisation

    async def ListReleases(self, request: pb.ListReleasesRequest, context: Context) -> pb.ListReleasesResponse:
        """All releases on disk, newest first, and which of them answers whom."""
        statuses = await asyncio.to_thread(self._releases.statuses)
        file = self._promotion.watcher
        return pb.ListReleasesResponse(
            releases=[release_message(status, self._live.figures(status.number)) for status in statuses],
            traffic=record_message(self._releases.traffic),
            traffic_failure=file.failure,
        )

    async def GetRelease(self, request: pb.GetReleaseRequest, context: Context) -> pb.GetReleaseResponse:
        """One release."""
        if request.release < 1:
            raise InvalidArgument(f"release is {request.release}; give a number from 1", "release")
        status = await asyncio.to_thread(self._releases.status, request.release)
        return pb.GetReleaseResponse(release=release_message(status, self._live.figures(status.number)))

    async def SetTraffic(self, request: pb.SetTrafficRequest, context: Context) -> pb.SetTrafficResponse:
        """Say which release answers whom."""
        self._authorisation.check(context)
        who, reason = _who_and_why(request, context)
        if not request.HasField("traffic"):
            raise InvalidArgument("give the traffic that shall be in force", "traffic")
        traffic = await self._promotion.set(wanted_of(request.traffic), who, reason)
        return pb.SetTrafficResponse(traffic=record_message(traffic))

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.RollbackResponse:
        """Take the last change back."""
        self._authorisation.check(context)
        traffic, summary = await self._promotion.roll_back(*_who_and_why(request, context))
        return pb.RollbackResponse(traffic=record_message(traffic), summary=summary)


def _who_and_why(request: pb.SetTrafficRequest | pb.RollbackRequest, context: Context) -> tuple[str, str]:
    who = checked_text(request.changed_by, MAX_NAME_BYTES, "changed_by") or f"a caller at {context.peer()}"
    return who, checked_text(request.reason, MAX_REASON_BYTES, "reason")
