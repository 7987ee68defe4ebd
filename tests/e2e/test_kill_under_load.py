"""`kill -9` of each process while traffic runs: every call is answered, and no acknowledged event is lost.

The figures that the tests print (`pytest -s`) are those of tests/benchmarks/RESULTS.md.
"""

import json
import time
from pathlib import Path

import psutil
import pytest
from segrec.v1 import event_service_pb2

from server.rpc.messages.conversion import event_message
from tests.support.load import Load, Seen
from tests.support.releases import group_history, tiny_release
from tests.support.server import ServerProcess, StartServer, Stubs

USERS = [f"load-{number}" for number in range(400)]
NO_CACHE = ("--cache-entries", "0")
LONG = ("--history-limit", "4096")


def children(server: ServerProcess, name: str) -> list[psutil.Process]:
    family = psutil.Process(server.process.pid).children(recursive=True)
    return [process for process in family if process.name().startswith(name)]


def serving(start_server: StartServer, tmp_path: Path, *flags: str, triton: str = "embedded") -> ServerProcess:
    if not (tmp_path / "repository").exists():
        tiny_release(tmp_path / "repository", 1)
    server = start_server(*flags, triton=triton)
    server.wait_until_serving()
    stubs = Stubs(server)
    for number, user_id in enumerate(USERS):
        events = [
            event_service_pb2.UserEvent(user_id=user_id, event=event_message(event))
            for event in group_history(number % 4, 5).events()
        ]
        stubs.events.RecordEvents(event_service_pb2.RecordEventsRequest(events=events))
    stubs.close()
    return server


def shown(what: str, seen: Seen, since: float) -> None:
    print(json.dumps({"killed": what, **seen.counts(), "recovery_seconds": round(seen.recovery_seconds(since), 2)}))


@pytest.mark.parametrize("name", ["tritonserver", "triton_python_b"])
def test_every_call_is_answered_while_triton_or_a_stub_is_killed(
    start_server: StartServer, tmp_path: Path, name: str
) -> None:
    """Without a cache all answers need the encoder; those that cannot have it are degraded, and none is an error."""
    server = serving(start_server, tmp_path, *NO_CACHE, *LONG)
    with Load(server.address, USERS) as load:
        load.wait_for_answers(200)
        killed = time.monotonic()
        children(server, name)[0].kill()
        load.wait_for_answers(2000, timeout=120)
    shown(name, load.seen, killed)
    assert set(load.seen.counts()) <= {"OK", "DEGRADED"}
    assert load.seen.recovery_seconds(killed) < 30
    assert stored_events(server) >= len(load.seen.acknowledged) > 0


def test_a_killed_server_loses_no_acknowledged_event_and_callers_see_unavailable(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = serving(start_server, tmp_path, *LONG)
    address = server.address
    with Load(address, USERS) as load:
        load.wait_for_answers(200)
        killed = time.monotonic()
        server.process.kill()
        server.process.wait()
        again = start_server("--address", address, *LONG)
        load.wait_for_answers(500, timeout=120)
    shown("segrec-serve", load.seen, killed)
    assert set(load.seen.counts()) <= {"OK", "UNAVAILABLE"}
    assert stored_events(again) >= len(load.seen.acknowledged) > 0


def stored_events(server: ServerProcess) -> int:
    stubs = Stubs(server)
    try:
        request = event_service_pb2.ListEventsRequest(user_id="recorder", page_size=1)
        return stubs.events.ListEvents(request).total_size
    finally:
        stubs.close()
