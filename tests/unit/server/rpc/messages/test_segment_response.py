"""The prepared response of Segment: the same bytes as a response built anew, whatever the answer and the names."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from segrec.v1.common_pb2 import Event, EventList
from segrec.v1.segrec_service_pb2 import SegmentRequest, SegmentResponse

from server.core.history import EMPTY
from server.core.release import Release
from server.core.repository.read import read_release
from server.rpc.messages.conversion import fill_segment
from server.rpc.messages.segment_response import segment_response
from server.serving.answer import Answer, Embedded
from tests.support.releases import CONFIDENCE, tiny_release

EMBEDDING = np.zeros(16, np.float32)
REQUEST = SegmentRequest(user_id="u")
indexes, distances = st.integers(0, 3), st.floats(0, 2, width=32)
placed = st.builds(
    Embedded,
    st.just(EMBEDDING),
    st.integers(1, 1 << 20),
    st.integers(0, 1 << 20),
    indexes,
    distances,
    indexes,
    distances,
    st.none() | st.floats(0, 1, width=32),
    st.booleans(),
    st.booleans(),
)
without_segment = st.builds(Embedded, st.none(), st.just(0), st.integers(0, 99))
names = st.dictionaries(st.integers(1, 4), st.sampled_from(["", "Gäste", "new", "客人"]))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return read_release(tiny_release(Path(tmp_path_factory.mktemp("release")), 7, confidence=CONFIDENCE))


def built(release: Release, answer: Answer) -> bytes:
    response = SegmentResponse()
    fill_segment(response, release, answer)
    return response.SerializeToString()


@given(embedded=placed | without_segment, given_names=st.lists(names, min_size=1, max_size=4))
def test_prepared_bytes_are_those_of_a_response_built_anew(
    release: Release, embedded: Embedded, given_names: list[dict[int, str]]
) -> None:
    answer = Answer(embedded, EMPTY)
    for by_id in given_names:
        release.names.by_id = by_id
        prepared = segment_response(release, answer, REQUEST)
        assert prepared[1] == built(release, answer)
        answer = answer._replace(prepared=prepared)
        assert segment_response(release, answer, REQUEST) is prepared


def test_a_history_in_the_request_is_answered_with_its_warnings(release: Release) -> None:
    request = SegmentRequest(events=EventList(events=[Event(item_id="unheard of", action="view")]))
    response = SegmentResponse.FromString(segment_response(release, Answer(Embedded(None), EMPTY), request)[1])
    assert [warning.value for warning in response.warnings] == ["unheard of"]
