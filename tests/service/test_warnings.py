"""What the release does not know of a request is said in the answer, by both clients and by the commands."""

from pathlib import Path

import pytest
from segrec import AsyncSegrecClient, Event, SegrecClient, UserEvent, enum_name, warning_sentence
from segrec.cli import main
from segrec.errors import InvalidArgument

from tests.support.server import ServerProcess

KNOWN = Event(item_id="item-001", action="view")


def told(response: object) -> list[tuple[str, str, str]]:
    return [(enum_name(found, "reason"), found.field, found.value) for found in response.warnings]  # type: ignore[attr-defined]


def test_unknown_names_in_options_and_events_are_warned_about_each_once(running_server: ServerProcess) -> None:
    strange = [Event(item_id="no-item", action="buy"), KNOWN, Event(item_id="no-item", action="view")]
    with SegrecClient(running_server.address, timeout_seconds=20) as client:
        response = client.recommend(
            events=strange,
            include_categories=["category-1", "Nope"],
            exclude_categories=["Nope"],
            exclude_item_ids=["item-002", "no-item"],
        )
        assert told(response) == [
            ("unknown_item", "options.exclude_item_ids[1]", "no-item"),
            ("unknown_category", "options.exclude_categories[0]", "Nope"),
            ("unknown_action", "events.events[0].action", "buy"),
        ]
        assert warning_sentence(response.warnings[1]) == (
            "the release does not know the category 'Nope' in options.exclude_categories[0]: see `segrec categories`"
        )
        assert told(client.segment(events=strange)) == [
            ("unknown_item", "events.events[0].item_id", "no-item"),
            ("unknown_action", "events.events[0].action", "buy"),
        ]
        assert told(client.segment(events=[KNOWN])) == told(client.recommend("warned")) == []
        many = client.recommend("warned", candidate_item_ids=[f"no-{number}" for number in range(500)])
        assert len(many.warnings) == 20


def test_a_stream_warns_about_its_options(running_server: ServerProcess) -> None:
    users = [f"warned-{number}" for number in range(30)]
    with SegrecClient(running_server.address, timeout_seconds=20) as client:
        stream = client.stream_recommend(users, chunk_size=10, include_categories=["category-1", "Nope"])
        assert len(list(stream)) == 30
        assert told(stream) == [("unknown_category", "config.options.include_categories[1]", "Nope")]
        quiet = client.stream_recommend(users, include_categories=["category-1"])
        assert len(list(quiet)) == 30
        assert quiet.warnings == []


async def test_recorded_events_of_unknown_names_are_stored_and_warned_about(running_server: ServerProcess) -> None:
    events = [
        UserEvent(user_id=f"warned-{number % 50}", event=Event(item_id="item-001", action="view"))
        for number in range(1500)
    ]
    events[7].event.item_id = ""  # refused, so nothing is warned about
    events[8].event.action = "buy"
    events[1300].event.item_id, events[1301].event.action = "no-item", "buy"
    async with AsyncSegrecClient(running_server.address, timeout_seconds=20) as client:
        response = await client.record(events)
    assert response.stored_count == 1499
    assert told(response) == [
        ("unknown_action", "events[8].event.action", "buy"),
        ("unknown_item", "events[1300].event.item_id", "no-item"),
    ]


def test_a_session_key_is_for_histories_in_the_request(running_server: ServerProcess) -> None:
    with SegrecClient(running_server.address, timeout_seconds=20) as client:
        for arguments in ({"user_id": "u"}, {"events": [KNOWN]}):
            with pytest.raises(InvalidArgument) as caught:
                client.segment(**arguments, session_key=" blank" if "events" in arguments else "key")
            assert caught.value.field == "session_key"


def test_commands_tell_on_standard_error(
    running_server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = ["--address", running_server.address, "--timeout", "20"]
    assert main.main(["recommend", "warned", "warned-3", "--category", "Nope", "--json", *address]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("segrec: warning: the release does not know the category 'Nope'") == 1
    assert "Nope" not in captured.out
    users, out = tmp_path / "users.txt", tmp_path / "out.csv"
    users.write_text("warned\nwarned-3\n")
    words = ["stream", "--users", str(users), "--out", str(out), "--recommend", "--category", "Nope"]
    assert main.main([*words, *address]) == 0
    assert capsys.readouterr().err.count("segrec: warning: the release does not know the category 'Nope'") == 1
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,action\nwarned-4,item-001,view\nwarned-4,item-002,buy\nwarned-5,item-003,buy\n")
    assert main.main(["record", str(path), *address]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("does not know the action 'buy'") == 1
    assert captured.err.startswith("Line 3: warning: the release does not know the action 'buy': see")
