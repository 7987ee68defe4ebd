"""The client and its command against the real server."""

import csv
from pathlib import Path

import pytest
from segrec import Event, ModelClient, SegrecClient, UserEvent
from segrec.cli import main
from segrec.errors import InvalidArgument, NotFound

from tests.support.server import ServerProcess

USERS = [f"client-{n}" for n in range(500)]


def test_events_segments_and_streams_agree(running_server: ServerProcess, tmp_path: Path) -> None:
    users, out = tmp_path / "users.txt", tmp_path / "out.csv"
    users.write_text("\n".join([*USERS, "x" * 300, "NULL"]), encoding="utf-8")
    with SegrecClient(running_server.address, timeout_seconds=20) as client:
        item_ids = [item.item_id for item in client.recommend("nobody-at-all", top_k=2).items]
        events = [
            UserEvent(user_id=user_id, event=Event(item_id=item_ids[n % 2], action="view"))
            for n, user_id in enumerate(USERS)
        ]
        assert client.record(events).stored_count == len(USERS)
        assert client.record(events).duplicate_count == len(USERS)
        one = client.segment(USERS[0])
    address = ["--address", running_server.address]
    assert main.main(["stream", "--users", str(users), "--out", str(out), "--chunk-size", "64", *address]) == 5
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["user_id"] for row in rows] == [*USERS, "x" * 300, ""]
    assert [row["code"] for row in rows] == ["OK"] * len(USERS) + ["INVALID_ARGUMENT"] * 2
    assert [row["input_row"] for row in rows] == [str(number) for number in range(1, len(USERS) + 3)]
    assert rows[-1]["message"] == "The user id is empty", "not the index in its chunk"
    assert float(rows[0]["distance"]) == pytest.approx(one.assignment.distance, abs=1e-5)


def test_errors_name_the_field(running_server: ServerProcess) -> None:
    with SegrecClient(running_server.address, timeout_seconds=20) as client:
        with pytest.raises(InvalidArgument) as caught:
            client.recommend("a", top_k=501)
        assert "top_k" in caught.value.field
        with pytest.raises(NotFound):
            client.get_segment(1_000_000)
    with ModelClient(running_server.model_address, timeout_seconds=20) as models, pytest.raises(NotFound):
        models.get_release(999)
