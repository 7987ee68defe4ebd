"""When the server's health says SERVING."""

import asyncio

import pytest

from server.core.errors import StoreUnavailable
from server.monitoring import health
from server.monitoring.health import HealthWatch
from tests.support.ticking import Clock

PATIENCE_SECONDS = 30.0


class Parts:
    """A release, a Triton and a history store, and what was said about them."""

    def __init__(self) -> None:
        self.active, self.encoder, self.store, self.hangs = True, True, True, False
        self.said: list[bool] = []
        self.clock = Clock()
        self.watch = HealthWatch(
            lambda: self.active, lambda: self.encoder, self._ask, self._say, PATIENCE_SECONDS, self.clock
        )

    async def _ask(self, _: str) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if not self.store:
            raise StoreUnavailable("no answer")

    async def _say(self, serving: bool) -> None:
        self.said.append(serving)

    async def check_after(self, seconds: float) -> list[bool]:
        self.clock.now += seconds
        await self.watch.check()
        return self.said


async def test_it_serves_from_the_first_active_release_on() -> None:
    parts = Parts()
    parts.active = False
    assert await parts.check_after(100) == []
    parts.active = True
    assert await parts.check_after(0) == [True]
    assert await parts.check_after(100) == [True]


@pytest.mark.parametrize("part", ["encoder", "store"])
async def test_a_part_that_is_away_for_long_ends_it_until_the_part_answers(
    part: str, caplog: pytest.LogCaptureFixture
) -> None:
    parts = Parts()
    await parts.check_after(0)
    setattr(parts, part, False)
    assert await parts.check_after(0) == [True]
    assert await parts.check_after(PATIENCE_SECONDS - 1) == [True]
    assert await parts.check_after(1) == [True, False]
    assert await parts.check_after(500) == [True, False]
    assert len([one for one in caplog.records if "NOT_SERVING" in one.message]) == 1
    setattr(parts, part, True)
    assert await parts.check_after(1) == [True, False, True]
    setattr(parts, part, False)
    assert await parts.check_after(PATIENCE_SECONDS - 1) == [True, False, True]


async def test_a_store_that_hangs_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "STORE_SECONDS", 0.01)
    parts = Parts()
    await parts.check_after(0)
    parts.hangs = True
    await parts.check_after(1)
    assert await parts.check_after(PATIENCE_SECONDS) == [True, False]


async def test_a_check_that_fails_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    parts, stop = Parts(), asyncio.Event()
    failures = 0

    def fail() -> bool:
        nonlocal failures
        failures += 1
        if failures == 3:
            stop.set()
        parts.watch.changed.set()
        raise RuntimeError

    parts.watch = HealthWatch(fail, lambda: True, parts._ask, parts._say, PATIENCE_SECONDS, parts.clock)
    await asyncio.wait_for(parts.watch.watch(stop), 5)
    assert failures == 3
    assert "could not be checked" in caplog.text
