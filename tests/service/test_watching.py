"""What a server tells of its releases, its shadow, and the guard of its canary, against the real Triton."""

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from segrec.v1 import model_service_pb2
from segrec.v1 import segrec_service_pb2 as pb

from server.core.release import Confidence, Manifest
from server.core.repository.audit import read_audit
from server.core.repository.read import record_of
from server.core.repository.traffic import Guard, Traffic, change_traffic, read_traffic
from tests.service.test_segrec_service import record
from tests.support.releases import CONFIDENCE, group_history, tiny_release
from tests.support.server import ServerProcess, StartServer, Stubs
from tests.support.stream_messages import recommend_messages
from tests.support.waiting import wait_until

USERS = [f"watched-{number}" for number in range(40)]
NEVER_SURE = Confidence(margins=(0, 1), stays=(0.1, 0.2), min_confidence=0.5, min_history=0)

Serving = Callable[..., tuple[ServerProcess, Stubs]]


@pytest.fixture
def serving(start_server: StartServer) -> Iterator[Serving]:
    """Start a server that knows the histories of `USERS`, twelve events each."""
    opened: list[Stubs] = []

    def start(*flags: str) -> tuple[ServerProcess, Stubs]:
        server = start_server(*flags)
        server.wait_until_serving()
        opened.append(Stubs(server))
        for number, user_id in enumerate(USERS):
            record(opened[-1], user_id, group_history(number % 4, 12))
        return server, opened[-1]

    yield start
    for stubs in opened:
        stubs.close()


def put(repository: Path, **fields: object) -> Traffic:
    """Say which release answers whom, as an ML engineer does."""
    return change_traffic(
        repository,
        lambda before: Traffic.model_validate(before.model_dump() | fields),
        what="traffic",
        who="a test",
    )


def release_of(stubs: Stubs, number: int) -> model_service_pb2.Release:
    return stubs.models.GetRelease(model_service_pb2.GetReleaseRequest(release=number)).release


def ask_all(stubs: Stubs) -> set[int]:
    """Ask for all users, one by one and as a stream; returns the releases that answered."""
    answered = {stubs.segrec.Segment(pb.SegmentRequest(user_id=user)).info.release for user in USERS}
    answered |= {stubs.segrec.Recommend(pb.RecommendRequest(user_id=user)).info.release for user in USERS}
    [chunk, _] = stubs.segrec.StreamRecommend(recommend_messages(USERS))
    return answered | {row.result.info.release for row in chunk.chunk.rows}


def metrics_of(server: ServerProcess) -> set[str]:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as response:
        return set(response.read().decode().splitlines())


def is_in_force(stubs: Stubs, number: int) -> bool:
    """Whether the server has loaded a release and gives it what the traffic says."""
    state = release_of(stubs, number).state
    return state in (model_service_pb2.RELEASE_STATE_CANARY, model_service_pb2.RELEASE_STATE_SHADOW)


def poison(release: Path, first_item: int) -> None:
    """Have the encoder give NaN for histories with items from this number on, which golden inputs do not hold."""
    model = onnx.load(str(release / "model.onnx"))
    [table] = [one for one in model.graph.initializer if one.name == "item_table"]
    rows = numpy_helper.to_array(table).copy()
    rows[first_item:] = np.nan
    table.CopyFrom(numpy_helper.from_array(rows, "item_table"))
    onnx.save(model, str(release / "model.onnx"))
    manifest = Manifest.model_validate_json((release / "manifest.json").read_bytes())
    files = manifest.files | {"model.onnx": record_of(release / "model.onnx")}
    (release / "manifest.json").write_text(manifest.model_copy(update={"files": files}).model_dump_json())


def test_a_shadow_is_compared_and_never_returned(tmp_path: Path, serving: Serving) -> None:
    repository = tmp_path / "repository"
    tiny_release(repository, 1, confidence=CONFIDENCE)
    tiny_release(repository, 2, confidence=NEVER_SURE)
    put(repository, stable=1, shadow=2)
    server, stubs = serving("--shadow-budget", "1")
    wait_until(lambda: is_in_force(stubs, 2))
    assert ask_all(stubs) == {1}
    wait_until(lambda: release_of(stubs, 2).live.compared_count == 3 * len(USERS))
    shadow, active = release_of(stubs, 2).live, release_of(stubs, 1).live
    assert (shadow.compared_release, shadow.answer_count, shadow.unconfident_share) == (1, 0, 1.0)
    assert shadow.changed_segment_share == 0.0, "both put each group into the segment of the same id"
    assert 0 < shadow.top_items_overlap <= 1
    assert shadow.score_shift > 0
    assert not shadow.HasField("p99_time")
    assert (active.answer_count, active.error_share, active.degraded_share) == (3 * len(USERS), 0.0, 0.0)
    assert active.unconfident_share == 0.0
    assert 0 < active.median_time.ToNanoseconds() <= active.p99_time.ToNanoseconds()
    assert 0 < active.window.seconds <= 300
    lines = metrics_of(server)
    assert f'segrec_compared_total{{release="2",segment="same"}} {3.0 * len(USERS)}' in lines
    assert f'segrec_release_answers_total{{outcome="whole",release="1"}} {3.0 * len(USERS)}' in lines
    assert not any(user in line for user in USERS for line in lines)
    listed = stubs.models.ListReleases(model_service_pb2.ListReleasesRequest()).releases
    assert [one.live.compared_count for one in listed] == [3 * len(USERS), 0]


def test_an_unloaded_release_leaves_no_series_behind(tmp_path: Path, serving: Serving) -> None:
    repository = tmp_path / "repository"
    tiny_release(repository, 1)
    server, stubs = serving("--keep-releases", "1")
    assert ask_all(stubs) == {1}
    assert any('release="1"' in line for line in metrics_of(server))
    tiny_release(repository, 2)
    wait_until(lambda: ask_all(stubs) == {2})
    wait_until(lambda: not any('release="1"' in line for line in metrics_of(server)))
    assert not release_of(stubs, 1).HasField("live")


@pytest.mark.parametrize(
    ("ails", "bound", "said"),
    [
        ("it is never sure", {"max_unconfident_share": 0.5}, "its unconfident share is 1, above 0.5"),
        ("Triton gives NaN for it", {"max_degraded_share": 0.2}, "its degraded share is 1, above 0.2"),
    ],
)
def test_the_guard_takes_out_a_canary_that_ails_and_the_audit_says_why(
    tmp_path: Path, serving: Serving, ails: str, bound: dict[str, float], said: str
) -> None:
    repository = tmp_path / "repository"
    tiny_release(repository, 1, confidence=CONFIDENCE)
    canary = tiny_release(repository, 2, confidence=NEVER_SURE if "sure" in ails else CONFIDENCE)
    if "NaN" in ails:
        poison(canary, 41)
    guard = Guard(**bound, window_seconds=4, min_answer_count=10)
    traffic = put(repository, stable=1, canary=2, canary_share=0.5, guard=guard)
    mine = [user for user in USERS if traffic.is_canary_user(user)]
    server, stubs = serving()
    wait_until(lambda: is_in_force(stubs, 2))
    wait_until(lambda: ask_all(stubs) == {1} and read_traffic(repository).canary == 0, timeout=60)
    entry = read_audit(repository)[-1]
    assert (entry.what, entry.release) == ("guard", 2)
    assert entry.who.startswith("guard of ")
    assert entry.reason.startswith(f"release 2 is taken out: {said}")
    assert stubs.segrec.Segment(pb.SegmentRequest(user_id=mine[0])).assignment.state == pb.SEGMENT_STATE_ASSIGNED
    assert server.has_said(f"release 2 is taken out: {said}")
    assert "segrec_guard_trips 1.0" in metrics_of(server)
    assert not any(user in server.output for user in USERS)


def test_a_good_canary_stays(tmp_path: Path, serving: Serving) -> None:
    repository = tmp_path / "repository"
    for number in (1, 2):
        tiny_release(repository, number, confidence=CONFIDENCE)
    guard = Guard(
        max_error_share=0.0,
        max_degraded_share=0.0,
        max_unconfident_share=0.0,
        max_p99_seconds=60,
        window_seconds=1,
        min_answer_count=10,
    )
    put(repository, stable=1, canary=2, canary_share=0.5, guard=guard)
    server, stubs = serving("--shadow-budget", "1")
    wait_until(lambda: is_in_force(stubs, 2))
    wait_until(lambda: ask_all(stubs) == {1, 2} and release_of(stubs, 2).live.window.seconds > 3)
    assert read_traffic(repository).canary == 2
    assert "segrec_guard_trips 0.0" in metrics_of(server)
    live = release_of(stubs, 2).live
    assert (live.compared_release, live.error_share, live.degraded_share) == (1, 0.0, 0.0)
    assert live.compared_count > 0, "answers of the canary are compared with the active release"
    assert live.answer_count >= live.compared_count


def test_where_the_repository_cannot_be_written_the_guard_holds_out_alone(tmp_path: Path, serving: Serving) -> None:
    repository = tmp_path / "repository"
    for number, confidence in ((1, CONFIDENCE), (2, NEVER_SURE)):
        tiny_release(repository, number, confidence=confidence)
    guard = Guard(max_unconfident_share=0.5, window_seconds=1, min_answer_count=10)
    put(repository, stable=1, canary=2, canary_share=0.5, guard=guard)
    lock = repository / ".traffic.lock"
    lock.unlink()
    lock.mkdir()  # so that nobody can write, not even root
    server, stubs = serving()
    wait_until(lambda: is_in_force(stubs, 2) and ask_all(stubs) == {1, 2})
    wait_until(lambda: ask_all(stubs) == {1})
    assert read_traffic(repository).canary == 2
    assert [entry.what for entry in read_audit(repository)] == ["traffic"]
    assert "its unconfident share is 1, above 0.5" in release_of(stubs, 2).failure
    assert server.has_said("on this server alone")
    assert "segrec_guard_holding_out 1.0" in metrics_of(server)
    lock.rmdir()
    put(repository, canary=0, canary_share=0, guard=None)
    wait_until(lambda: "segrec_guard_holding_out 0.0" in metrics_of(server))
    assert release_of(stubs, 2).failure == ""
