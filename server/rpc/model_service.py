"""`segrec.v1.ModelService`."""

import asyncio

from segrec.v1 import model_service_pb2 as pb
from segrec.v1 import model_service_pb2_grpc

from server.core.errors import InvalidArgument
from server.releases import Releases
from server.rpc.conversion import release_message
from server.rpc.typing import Context


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Tells which releases there are."""

    def __init__(self, releases: Releases) -> None:
        self._releases = releases

    async def ListReleases(self, request: pb.ListReleasesRequest, context: Context) -> pb.ListReleasesResponse:
        """All releases on disk, newest first."""
        statuses = await asyncio.to_thread(self._releases.statuses)
        return pb.ListReleasesResponse(releases=[release_message(status) for status in statuses])

    async def GetRelease(self, request: pb.GetReleaseRequest, context: Context) -> pb.GetReleaseResponse:
        """One release."""
        if request.release < 1:
            raise InvalidArgument(f"release is {request.release}; give a number from 1", "release")
        status = await asyncio.to_thread(self._releases.status, request.release)
        return pb.GetReleaseResponse(release=release_message(status))
