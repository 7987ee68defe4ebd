import asyncio
import fcntl
import logging
from pathlib import Path

import pytest

from server.adapters import load_turn
from server.adapters.load_turn import LoadTurn
from tests.support.waiting import pause


async def test_turns_come_one_after_the_other(tmp_path: Path) -> None:
    inside = most = 0

    async def load() -> None:
        nonlocal inside, most
        async with LoadTurn(tmp_path / "lock")():
            inside += 1
            most = max(most, inside)
            await pause(0)
            inside -= 1

    await asyncio.gather(*(load() for _ in range(5)))
    assert most == 1


async def test_a_frozen_holder_stops_nobody_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(load_turn, "TURN_SECONDS", 0.2)
    with (tmp_path / "lock").open("a") as file, caplog.at_level(logging.WARNING):
        fcntl.flock(file, fcntl.LOCK_EX)
        async with LoadTurn(tmp_path / "lock")():
            assert "is held by another server for 0.2 s" in caplog.text


async def test_an_error_and_a_cancelled_load_end_the_turn(tmp_path: Path) -> None:
    turn = LoadTurn(tmp_path / "lock")
    with pytest.raises(KeyError):
        async with turn():
            raise KeyError
    async with asyncio.timeout(5), turn():
        pass


async def test_without_a_directory_to_write_there_are_no_turns(tmp_path: Path) -> None:
    async with LoadTurn(tmp_path / "missing" / "lock")():
        pass
