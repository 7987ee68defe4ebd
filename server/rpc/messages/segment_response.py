"""The response of `Segment` as the bytes that are sent, which a cached user's answer carries from call to call."""

from segrec.v1.segrec_service_pb2 import SegmentRequest, SegmentResponse

from server.core.release import Release
from server.rpc.messages.conversion import fill_segment, label_of
from server.rpc.messages.request_warnings import warnings_of
from server.serving.answer import Answer, PreparedSegment


def segment_response(release: Release, answer: Answer, request: SegmentRequest) -> PreparedSegment:
    """What answers a request; `answer.prepared` itself as long as nobody has named the segment otherwise."""
    label = label_of(release, answer)  # before the message is filled: a name may change meanwhile
    if answer.prepared is not None and answer.prepared[0] == label:
        return answer.prepared
    response = SegmentResponse()
    fill_segment(response, release, answer)
    response.warnings.extend(warnings_of(release, request))
    return label, response.SerializeToString()
