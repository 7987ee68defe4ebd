"""Names of enum values."""

import pytest
from segrec import enum_name
from segrec.v1.common_pb2 import AnswerInfo
from segrec.v1.segrec_service_pb2 import ITEM_REASON_POPULAR, RecommendedItem, SegmentAssignment


def test_a_value_has_its_name_without_that_of_the_enum() -> None:
    assert enum_name(RecommendedItem(reason=ITEM_REASON_POPULAR), "reason") == "popular"
    assert enum_name(SegmentAssignment.FromString(b"\x08\x04"), "state") == "no_confident_segment"
    assert enum_name(AnswerInfo(), "degraded_reason") == "unspecified"


def test_a_value_of_a_newer_server_is_its_number() -> None:
    assert enum_name(RecommendedItem.FromString(b"\x20\x63"), "reason") == "99"


def test_a_field_that_is_no_enum_is_an_error() -> None:
    with pytest.raises(ValueError, match="title is no enum"):
        enum_name(RecommendedItem(), "title")
