"""The counts of a stream, and its line of progress."""

import pytest
from segrec.cli.stream_counts import StreamCounts, progress_line
from segrec.v1.common_pb2 import AnswerInfo
from segrec.v1.segrec_service_pb2 import SegmentResponse, SegmentRow


def row(release: int, *, degraded: bool = False) -> SegmentRow:
    return SegmentRow(user_id="u", result=SegmentResponse(info=AnswerInfo(release=release, degraded=degraded)))


def test_counts_add_up_and_name_the_releases() -> None:
    counts = StreamCounts().plus([row(1), row(2, degraded=True)], 1).plus([row(2), SegmentRow(user_id="bad")], 0)
    assert counts == StreamCounts(read=4, answered=3, failed=1, degraded=1, changed=1, releases={"1": 1, "2": 2})
    assert counts.read == counts.answered + counts.failed == sum(counts.releases.values()) + 1


@pytest.mark.parametrize(
    ("read", "total", "rate", "expected"),
    [
        (250, 1000, 100.0, " 25%  250 of 1,000 users  100/s  2 failed  3 degraded  about 8 s left"),
        (0, 1000, 0.0, "  0%  0 of 1,000 users  0/s  2 failed  3 degraded"),
        (1000, 1000, 100.0, "100%  1,000 of 1,000 users  100/s  2 failed  3 degraded"),
        (1000, 1090, 1.0, " 92%  1,000 of 1,090 users  1/s  2 failed  3 degraded  about 1 min 30 s left"),
        (0, 1000, 1.0, "  0%  0 of 1,000 users  1/s  2 failed  3 degraded  about 16 min left"),
        (0, 10_000, 1.0, "  0%  0 of 10,000 users  1/s  2 failed  3 degraded  about 2 h 46 min left"),
        (0, 0, 0.0, "100%  0 of 0 users  0/s  2 failed  3 degraded"),
    ],
)
def test_progress_is_what_is_written_and_what_is_left(read: int, total: int, rate: float, expected: str) -> None:
    assert progress_line(StreamCounts(read=read, failed=2, degraded=3), total, rate) == expected
