"""Traffic against two real servers, each with a Triton of its own, on one repository."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from segrec import Event, ModelClient, SegrecClient, UserEvent
from segrec.cli import main
from segrec.errors import FailedPrecondition, InvalidArgument, NotFound
from segrec.v1.model_service_pb2 import Guard, ReleaseState

from server.core.repository.audit import read_audit
from server.core.repository.segment_notes import SEGMENT_NOTES
from server.core.repository.traffic import TRAFFIC, change_traffic, read_traffic
from tests.support.releases import item_id, tiny_release
from tests.support.server import ServerProcess
from tests.support.waiting import wait_until
from training.segments.notes import rename_segment

USERS = [f"traffic-{number}" for number in range(1000)]
IN_FORCE_SECONDS = 1.0
"""Within this every server follows a change."""


class Pair:
    """Two servers on one repository, with their clients."""

    def __init__(self, directory: Path, triton_environment: Path) -> None:
        self._environment = triton_environment
        self._directories = [directory / "a", directory / "b"]
        self.repository = directory / "a" / "repository"
        self.repository.mkdir(parents=True)
        (directory / "b").mkdir()
        (directory / "b" / "repository").symlink_to(self.repository)
        for number in (1, 2, 3):
            tiny_release(self.repository, number)
        self.servers = [self._start(place) for place in (0, 1)]
        for server in self.servers:
            server.wait_until_serving()
        self.clients = [SegrecClient(server.address, timeout_seconds=20) for server in self.servers]
        self.models = ModelClient(self.servers[0].model_address, timeout_seconds=20)

    def _start(self, place: int) -> ServerProcess:
        return ServerProcess(self._directories[place], self._environment)

    def restart(self, place: int) -> None:
        self.clients[place].close()
        self.servers[place].end()
        self.servers[place] = self._start(place)
        self.servers[place].wait_until_serving()
        self.clients[place] = SegrecClient(self.servers[place].address, timeout_seconds=20)

    def releases(self, users: list[str], place: int) -> list[int]:
        """The release that answers each user, by a stream."""
        return [row.result.info.release for row in self.clients[place].stream_segment(users)]

    def seconds_until(self, release: int) -> float:
        """How long until both servers answer by this release."""
        start = time.monotonic()
        for client in self.clients:
            wait_until(lambda client=client: client.segment("anyone").info.release == release)  # type: ignore[misc]
        return time.monotonic() - start

    def end(self) -> None:
        self.models.close()
        for client, server in zip(self.clients, self.servers, strict=True):
            client.close()
            server.end()


@pytest.fixture(scope="module")
def shared_pair(triton_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("pair"), triton_environment)
    yield pair
    pair.end()


@pytest.fixture
def pair(shared_pair: Pair) -> Pair:
    """Both servers, with the newest release answering all, and no memory of what was before."""
    (shared_pair.repository / TRAFFIC).unlink(missing_ok=True)
    shared_pair.seconds_until(3)
    return shared_pair


def put(pair: Pair, stable: int, canary: int = 0, share: float = 0.0) -> None:
    """Change the traffic as `segrec-train traffic` does: in the file."""
    change_traffic(
        pair.repository, lambda before: before.with_stable(stable).with_answering(canary, share), "traffic", "test"
    )


def test_two_servers_follow_each_change_and_rollback_within_a_second(pair: Pair) -> None:
    put(pair, 2)
    pair.seconds_until(2)  # whatever it takes to load it
    took = []
    for release in (3, 2, 3):
        put(pair, release)
        took.append(pair.seconds_until(release))
    pair.models.set_traffic(1, reason="as asked")
    assert pair.clients[0].segment("anyone").info.release == 1  # loaded, and in force here when it has returned
    pair.seconds_until(1)
    answer = pair.models.rollback(reason="no better", changed_by="an engineer")
    assert answer.summary == "Release 3 answers instead of release 1."
    assert pair.clients[0].segment("anyone").info.release == 3
    took.append(pair.seconds_until(3))
    print(f"\nseconds until both servers followed: {', '.join(f'{seconds:.2f}' for seconds in took)}")
    assert sorted(took)[len(took) // 2] < IN_FORCE_SECONDS
    assert max(took) < 5 * IN_FORCE_SECONDS  # the machine may be busy
    last = read_audit(pair.repository)[-1]
    assert (last.what, last.who, last.release, last.reason) == ("rollback", "an engineer", 3, "no better")


def test_the_canary_has_the_same_users_everywhere_and_a_larger_share_only_adds_some(pair: Pair) -> None:
    before: set[str] = set()
    for percent in (1.0, 5.0, 20.0):
        pair.models.set_traffic(1, canary=2, canary_share=percent / 100)
        expected = [2 if read_traffic(pair.repository).is_canary_user(user) else 1 for user in USERS]
        assert pair.releases(USERS, 0) == expected
        wait_until(lambda expected=expected: pair.releases(USERS, 1) == expected)  # type: ignore[misc]
        members = {user for user, release in zip(USERS, expected, strict=True) if release == 2}
        assert before < members
        before = members
    pair.restart(1)
    wait_until(lambda: set(pair.releases(USERS, 1)) == {1, 2})
    assert pair.releases(USERS, 1) == pair.releases(USERS, 0) == expected
    for user in USERS[:50]:
        assert pair.clients[1].segment(user).info.release == (2 if user in before else 1)
        assert pair.clients[1].recommend(user).info.release == (2 if user in before else 1)


def test_a_session_key_draws_the_release_of_a_history_given_in_the_request(pair: Pair) -> None:
    pair.models.set_traffic(1, canary=2, canary_share=0.5)
    traffic, events = read_traffic(pair.repository), [Event(item_id="item-001", action="view")]
    keys = [f"session-{number}" for number in range(40)]
    expected = [2 if traffic.is_canary_user(key) else 1 for key in keys]
    assert {1, 2} == set(expected)
    for key in (keys[expected.index(1)], keys[expected.index(2)]):
        chosen = expected[keys.index(key)]
        wait_until(lambda key=key, chosen=chosen: pair.clients[1].segment(key).info.release == chosen)  # type: ignore[misc]
    for client in pair.clients:  # the same on every server, and at every call
        assert [client.segment(events=events, session_key=key).info.release for key in keys] == expected
    assert [pair.clients[0].recommend(events=events, session_key=key).info.release for key in keys] == expected
    assert {pair.clients[0].segment(events=events).info.release for _ in range(20)} == {1}
    pinned = pair.clients[0].segment(events=events, session_key=keys[expected.index(2)], release="stable")
    assert pinned.info.release == 1
    assert not [line for server in pair.servers for line in server.lines if "session-" in line]


def test_the_canary_has_its_share_of_100_000_users_within_half_a_point(pair: Pair) -> None:
    users = [f"{number:06d}" for number in range(100_000)]
    for percent in (1.0, 5.0):
        pair.models.set_traffic(1, canary=2, canary_share=percent / 100)
        share = pair.releases(users, 0).count(2) / 1000
        print(f"\n{percent:g} % asked for, {share:.3f} % got")
        assert abs(share - percent) < 0.5


def test_pins_and_rows_of_streams(pair: Pair) -> None:
    pair.models.set_traffic(1, canary=2, canary_share=0.5, shadow=3)
    client = pair.clients[0]
    member = next(user for user in USERS if read_traffic(pair.repository).is_canary_user(user))
    assert client.segment(member).info.release == 2
    assert client.segment(member, release="stable").info.release == 1
    assert client.recommend(member, release="canary").info.release == 2
    assert client.segment(member, release=3).info.release == 3
    assert client.list_segments("canary").release == 2
    assert client.get_segment(1, "stable").release == 1
    for pin, number in (("stable", 1), ("canary", 2)):
        pinned = client.stream_recommend(USERS, release=pin)
        assert {row.result.info.release for row in pinned} == {number}
    rows = list(client.stream_recommend(USERS, chunk_size=100))
    assert [row.user_id for row in rows] == USERS
    for row in rows:
        assert row.result.items[0].title.endswith(f" of release {row.result.info.release}")
    with pytest.raises(InvalidArgument, match="stable or canary"):
        client.segment(member, release="latest")


def test_a_stream_keeps_its_stable_release_and_leaves_a_canary_that_is_none_any_more(pair: Pair) -> None:
    pair.models.set_traffic(1, canary=2, canary_share=0.5)
    ids = (user for _ in range(100) for user in USERS)
    with pair.clients[0].stream_segment(ids, chunk_size=100, max_in_flight=2) as stream:
        chunks = stream.chunks()
        first = [row.result.info.release for row in next(chunks)]
        pair.models.set_traffic(3)
        later = [row.result.info.release for rows in islice(chunks, 10, 15) for row in rows]
    assert set(first) == {1, 2}
    assert set(later) == {1}


def test_releases_tell_their_states_and_shares(pair: Pair) -> None:
    guard = Guard(max_error_share=0.01)
    record = pair.models.set_traffic(1, canary=2, canary_share=0.05, shadow=3, guard=guard, changed_by="me")
    assert (record.traffic.guard.window.seconds, record.traffic.guard.min_answer_count) == (30, 100)
    told = {one.release: (one.state, one.traffic_share) for one in pair.models.list_releases()}
    assert told == {
        1: (ReleaseState.RELEASE_STATE_ACTIVE, 0.95),
        2: (ReleaseState.RELEASE_STATE_CANARY, 0.05),
        3: (ReleaseState.RELEASE_STATE_SHADOW, 0.0),
    }
    overview = pair.models.overview()
    assert overview.traffic == record
    assert overview.traffic.changed_by == "me"
    assert list(overview.traffic.previous_releases) == [3]  # the newest one answered before


def test_a_damaged_file_changes_nothing_and_is_mended_without_a_restart(pair: Pair) -> None:
    pair.models.set_traffic(1, canary=2, canary_share=0.5)
    expected = pair.releases(USERS, 0)
    whole = (pair.repository / TRAFFIC).read_text()
    (pair.repository / TRAFFIC).write_text(whole[:-20])
    wait_until(lambda: pair.models.overview().traffic_failure)
    assert "traffic.json is damaged" in pair.models.overview().traffic_failure
    assert pair.releases(USERS, 0) == expected
    pair.restart(1)  # the audit log tells it what was in force
    wait_until(lambda: pair.releases(USERS, 1) == expected)
    pair.models.set_traffic(2)
    assert pair.models.overview().traffic_failure == ""
    assert pair.seconds_until(2) < 5 * IN_FORCE_SECONDS


def test_refused_changes_name_their_field_and_change_nothing(pair: Pair) -> None:
    put(pair, 1)
    pair.seconds_until(1)
    broken = tiny_release(pair.repository, 9)
    (broken / "centroids.npy").write_bytes(b"damaged")
    with pytest.raises(NotFound) as missing:
        pair.models.set_traffic(1, canary=8, canary_share=0.05)
    assert missing.value.field == "traffic.canary_release"
    with pytest.raises(FailedPrecondition, match=r"centroids\.npy") as damaged:
        pair.models.set_traffic(9)
    assert damaged.value.reason == "DAMAGED_RELEASE"
    for fields, field in (
        ({"stable": -1}, "traffic.stable_release"),
        ({"stable": 1, "canary": 2, "canary_share": 1.0}, "traffic.canary_share"),
        ({"stable": 1, "canary": 2}, "traffic"),
        ({"stable": 1, "shadow": 1}, "traffic"),
        ({"stable": 1, "reason": "x" * 1025}, "reason"),
        ({"stable": 1, "changed_by": "a\nb"}, "changed_by"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            pair.models.set_traffic(**fields)
        assert caught.value.field == field
    assert pair.models.overview().traffic.traffic.stable_release == 1
    assert pair.clients[0].segment("anyone").info.release == 1


def test_the_command_shows_sets_and_takes_back(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    address = ["--address", pair.servers[0].model_address]
    assert main.main(["traffic", "1=100", "--reason", "first", "--by", "me", *address]) == 0
    assert main.main(["traffic", "2=5", "--shadow", "3", "--guard", "errors=0.01,p99=50ms", *address]) == 0
    capsys.readouterr()
    assert main.main(["traffic", "2=10", *address]) == 0
    shown = capsys.readouterr().out
    assert "Release 2 answers 10 % of the users, release 1 answers the others." in shown
    assert "Release 3 is the shadow" in shown
    assert "takes release 2 out above 1 % errors or a p99 of 50 ms over 30 s of 100 answers or more." in shown
    assert main.main(["rollback", *address]) == 0
    assert "Release 2 is no longer the canary" in capsys.readouterr().out
    assert main.main(["traffic", *address]) == 0
    assert "Release 1 answers everyone" in capsys.readouterr().out
    assert main.main(["segment", "anyone", "--release", "canary", "--address", pair.servers[0].address]) == 3
    assert "no canary" in capsys.readouterr().err


def test_a_new_name_of_a_segment_is_in_all_answers_of_all_servers(pair: Pair) -> None:
    def labels() -> set[str]:
        listed = [client.list_segments() for client in pair.clients]
        return {segment.label for answer in listed for segment in answer.segments if segment.segment_id == 2}

    event = Event(item_id=item_id(2), action="view")
    for client in pair.clients:
        client.record([UserEvent(user_id="named", event=event)])
        labels_before = [client.segment("named").assignment.label for _ in range(2)]  # the second one is cached
        assert labels_before[0] == labels_before[1] != "Weekend families"
    rename_segment(pair.repository, 2, "Weekend families")
    try:
        wait_until(lambda: labels() == {"Weekend families"}, 10)
        assert {client.segment("named").assignment.label for client in pair.clients} == {"Weekend families"}
        assert pair.clients[0].segment(events=[event]).assignment.label == "Weekend families"
        (pair.repository / SEGMENT_NOTES).write_text("[segments.2\n")
        pair.servers[0].wait_until_said("is no TOML file", 10)
        assert labels() == {"Weekend families"}
    finally:
        (pair.repository / SEGMENT_NOTES).unlink()
    wait_until(lambda: "Weekend families" not in labels(), 10)


def test_metrics_show_the_shares(pair: Pair) -> None:
    from urllib.request import urlopen

    pair.models.set_traffic(1, canary=2, canary_share=0.05)
    with urlopen(f"http://{pair.servers[0].metrics_address}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    told = [line for line in lines if line.startswith("segrec_traffic_")]
    assert told == [
        'segrec_traffic_share{release="1"} 0.95',
        'segrec_traffic_share{release="2"} 0.05',
        "segrec_traffic_damaged 0.0",
    ]
