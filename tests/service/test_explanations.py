"""The items of a user's history that explain scores, against the real server and the real Triton."""

import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from segrec import Event, ModelClient, SegrecClient, UserEvent, enum_name, warning_sentence
from segrec.cli import main
from segrec.v1.segrec_service_pb2 import RecommendedItem, RecommendResponse

from server.access.new_token import add_caller
from server.core.next_visit import FEATURES
from tests.service.test_operations import triton_processes
from tests.support.client_cli import records
from tests.support.releases import item_id, ranking_of, tiny_release
from tests.support.server import ServerProcess, StartServer

VISITS = {1: 4, 2: 2, 6: 1, 11: 3}
"""How many events the history has of items."""
WEIGHTS = {name: 0.1 * place for place, name in enumerate(FEATURES)}


def history_without(left_out: int = 0) -> list[Event]:
    """The events of `VISITS`, a day apart, but for those of one item."""
    numbers = [number for turn in range(4) for number, count in VISITS.items() if turn < count]
    days = enumerate(numbers, start=1)
    events = [Event(item_id=item_id(number), action="view", value=number) for number in numbers]
    for (day, _), event in zip(days, events, strict=True):
        event.timestamp.FromSeconds(1_700_000_000 + 86_400 * day)
    return [event for event in events if event.item_id != item_id(left_out)]


def record(client: SegrecClient, *users: str) -> None:
    client.record(UserEvent(user_id=user, event=event) for user in users for event in history_without())


def above_average(item: RecommendedItem) -> float:
    return sum(part.value for part in item.explanation.parts)


def told(items: Iterable[RecommendedItem]) -> dict[str, list[tuple[str, int, float]]]:
    """Recommended item → the items of the history, with their events and what they add."""
    return {
        item.item_id: [(own.item_id, own.event_count, own.value) for own in item.explanation.history_items]
        for item in items
    }


def expected_of(client: SegrecClient, answer: RecommendResponse) -> dict[str, list[tuple[str, int, float]]]:
    """What `told` must be, by one call for each item that the history is without."""
    names = [item.item_id for item in answer.items]
    added: dict[str, list[tuple[str, int, float]]] = {name: [] for name in names}
    for number, count in VISITS.items():
        without = client.recommend(
            events=history_without(number), candidate_item_ids=names, top_k=len(names), explain=True,
            release=answer.info.release, exclude_seen=False,
        )  # fmt: skip
        rest = {item.item_id: above_average(item) for item in without.items}
        for item in answer.items:
            added[item.item_id].append((item_id(number), count, above_average(item) - rest[item.item_id]))
    return {name: sorted(found, key=lambda one: -abs(one[2]))[:3] for name, found in added.items()}


def assert_close(
    found: dict[str, list[tuple[str, int, float]]], expected: dict[str, list[tuple[str, int, float]]]
) -> None:
    assert list(found) == list(expected)
    for name, items in found.items():
        assert [one[:2] for one in items] == [one[:2] for one in expected[name]]
        assert [one[2] for one in items] == pytest.approx([one[2] for one in expected[name]], abs=1e-4)


def test_explained_users_sessions_and_canaries(start_server: StartServer, tmp_path: Path) -> None:
    tiny_release(tmp_path / "repository", 1, ranking=ranking_of(**WEIGHTS))
    tiny_release(tmp_path / "repository", 2)
    server = start_server("--encode-timeout-seconds", "2.0")
    server.wait_until_serving()
    users = [f"u{number}" for number in range(8)]
    with (
        ModelClient(server.model_address, timeout_seconds=20) as models,
        SegrecClient(server.address, timeout_seconds=20) as client,
    ):
        record(client, *users)
        models.set_traffic(1, canary=2, canary_share=0.5)
        session = {
            number: client.recommend(events=history_without(), release=number, explain=True) for number in (1, 2)
        }
        for answer in session.values():
            assert_close(told(answer.items), expected_of(client, answer))
        releases = set()
        for user in users:
            client.segment(user)  # from now on the embedding is cached
            answer = client.recommend(user, explain=True)
            releases.add(answer.info.release)
            assert_close(told(answer.items), told(session[answer.info.release].items))
            assert not answer.info.degraded
        assert releases == {1, 2}
        [row] = client.stream_recommend([users[0]], explain=True)
        assert row.result.items[0].explanation.parts
        assert not any(told(row.result.items).values()), "streams name none"
        assert not any(told(client.recommend(users[0], strategy="popular", explain=True).items).values())
        assert not any(told(client.recommend("nobody", explain=True).items).values())
        assert_a_silent_encoder_costs_the_history_items_alone(server, client, users[0])


def assert_a_silent_encoder_costs_the_history_items_alone(
    server: ServerProcess, client: SegrecClient, user: str
) -> None:
    plain = client.recommend(user)
    [triton] = triton_processes(server)
    triton.suspend()
    start = time.monotonic()
    answer = client.recommend(user, explain=True, timeout=1.0)
    assert time.monotonic() - start < 1.0
    triton.resume()
    assert (answer.info.degraded, enum_name(answer.info, "degraded_reason")) == (True, "not_explained")
    assert [item.item_id for item in answer.items] == [item.item_id for item in plain.items]
    assert answer.assignment == plain.assignment
    assert not any(told(answer.items).values())
    assert answer.items[0].explanation.parts


def test_only_callers_who_may_read_a_history_are_told(start_server: StartServer, tmp_path: Path) -> None:
    tiny_release(tmp_path / "repository", 1)
    path = tmp_path / "access.toml"
    reader, desk = (add_caller(path, *caller) for caller in (("shop", ["read", "record"]), ("desk", ["read", "erase"])))
    server = start_server("--access-file", str(path))
    server.wait_until_serving()
    with SegrecClient(server.address, token=reader, timeout_seconds=20) as client:
        record(client, "u")
        answer = client.recommend("u", explain=True)
        assert [enum_name(one, "reason") for one in answer.warnings] == ["history_not_allowed"]
        assert "only callers with the role erase" in warning_sentence(answer.warnings[0])
        assert not any(told(answer.items).values())
        assert answer.items[0].explanation.parts
        assert not client.recommend("u", strategy="popular", explain=True).warnings
        assert not client.recommend("u").warnings
        given = client.recommend(events=history_without(), explain=True)
        assert not given.warnings
        assert all(told(given.items).values()), "the caller has given the events"
    with SegrecClient(server.address, token=desk, timeout_seconds=20) as client:
        answer = client.recommend("u", explain=True)
        assert not answer.warnings
        assert_close(told(answer.items), told(given.items))


def test_the_command_says_it_in_plain_words(running_server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    with SegrecClient(running_server.address, timeout_seconds=20) as client:
        record(client, "explained")
        answer = client.recommend("explained", top_k=3, explain=True)
    command = ["recommend", "explained", "--top-k", "3", "--address", running_server.address]
    assert main.main([*command, "--explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("what counts most of this user's own history: how much lower the score would be without it")
    assert len(lines) == place + 4
    first, own = answer.items[0], answer.items[0].explanation.history_items[0]
    events = f"{own.event_count} event{'s' * (own.event_count > 1)}"
    assert lines[place + 1].startswith(f"1. {first.title}: {own.title} ({events}) {own.value:.4f}, ")
    assert main.main([*command, "--explain", "--json"]) == 0
    [found] = records(capsys.readouterr().out)
    [shown, *_] = found["items"][0]["history_items"]
    assert (shown["item_id"], shown["event_count"]) == (own.item_id, own.event_count)
    assert shown["value"] == pytest.approx(own.value, abs=1e-5)
    assert main.main(command) == 0
    assert "own history" not in capsys.readouterr().out
