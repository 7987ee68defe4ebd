"""Follows the model repository: discover, check, load, prove by golden inputs, warm up, let it answer, unload."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from time import monotonic

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from server.adapters.ports import EncoderClient
from server.core.errors import DamagedRelease, EncoderUnavailable, SegrecError
from server.core.release import Release
from server.core.repository.read import read_release
from server.releases.registry import ReleaseRegistry

log = logging.getLogger(__name__)

GOLDEN_TIMEOUT_SECONDS = 10.0
PROBE_SECONDS = 2.0
"""How often the golden inputs of what answers are run, so that a dead Triton is noticed without traffic."""


class Loader:
    """Loads what the traffic names, the newest good release, and up to `keep` that were active.

    With a `release_key`, releases that were not signed for it are damaged. `refresh` does one round. Whatever fails
    leaves what answers answering, is kept with the release, and is tried again with a back-off.
    """

    def __init__(
        self, releases: ReleaseRegistry, encoder: EncoderClient, keep: int, release_key: Ed25519PublicKey | None = None
    ) -> None:
        self._releases = releases
        self._shelf = releases.shelf
        self._encoder = encoder
        self._keep = keep
        self._release_key = release_key
        self._asked: Counter[int] = Counter()
        self._probed_at = -math.inf
        self._wake = asyncio.Event()
        self._round = asyncio.Event()
        self.warm: Callable[[Release], Awaitable[None]] = _not_warmed
        """Runs real histories through a proved release before it answers. Raises `SegrecError` when it cannot."""

    async def follow(self, poll_seconds: float, stop: asyncio.Event) -> None:
        """Refresh until `stop` is set. Never ends by an exception."""
        stopping = asyncio.ensure_future(stop.wait())
        while not stop.is_set():
            self._wake.clear()
            try:
                await self.refresh()
            except Exception:
                log.exception("looking at the model repository failed; trying again")
            self._round.set()
            self._round = asyncio.Event()
            waking = asyncio.ensure_future(self._wake.wait())
            await asyncio.wait((stopping, waking), timeout=poll_seconds, return_when=asyncio.FIRST_COMPLETED)
            waking.cancel()

    def look_soon(self) -> None:
        """Have the next round begin without waiting, and probe whatever answers."""
        self._probed_at = -math.inf
        self._wake.set()

    def probe_soon(self) -> None:
        """Have the next round probe the encoder, since a call has just failed."""
        self._probed_at = -math.inf

    async def refresh(self) -> None:
        """One round. Errors of a release are kept with it; others raise."""
        numbers = await asyncio.to_thread(self._shelf.numbers)
        self._shelf.keep_failures_of({*numbers, *self._releases.traffic.named(), *(+self._asked)})
        await self._probe()
        await self._drop(numbers)
        await self._load_named(numbers)
        await self._load_newest(numbers)
        await self._load_earlier(numbers)
        await self._drop(numbers)

    async def _drop(self, numbers: Collection[int]) -> None:
        """Unload what nobody needs. Before loading, too: Triton refuses a load beside one whose files were pruned."""
        if self._releases.drop_idle(self._keep, set(+self._asked), numbers):
            await self._load_again()

    async def _load_named(self, numbers: Collection[int]) -> None:
        """Load what the traffic names and what was asked for, the most needed first."""
        traffic = self._releases.traffic
        earlier = [number for number in traffic.previous[:1] if number in numbers]
        for number in (traffic.stable, traffic.canary, traffic.shadow, *earlier, *(+self._asked)):
            if number and not self._releases.is_loaded(number):
                await self._try(number)

    async def _load_newest(self, numbers: Collection[int]) -> None:
        """Load the newest good release, which answers unless the traffic names another."""
        newest = max(self._releases.loaded_numbers(), default=0)
        for number in numbers:
            if number <= newest or await self._try(number):
                return

    async def _load_earlier(self, numbers: Collection[int]) -> None:
        """After a start, load the release that a roll-back would go to, so that it needs no time."""
        active = self._releases.active
        if active is None or self._keep < 2 or self._releases.traffic.previous or len(self._releases.actives) > 1:
            return
        for number in numbers:
            if number < active.number and (self._releases.is_loaded(number) or await self._try(number)):
                self._releases.remember_earlier(number)
                return

    async def _try(self, number: int) -> bool:
        """Load a release unless it failed lately and has not changed since."""
        signature = await asyncio.to_thread(self._shelf.signature, number)
        if self._shelf.rests(number, signature):
            return False
        self._releases.loading = number
        try:
            await self._load(number)
        except SegrecError as error:
            self._shelf.failed(number, error, signature)
            return False
        finally:
            self._releases.loading = 0
        self._shelf.forgive(number)
        return True

    async def _load(self, number: int) -> None:
        release = await asyncio.to_thread(read_release, self._shelf.path(number), self._release_key)
        await self._have_loaded([*self._releases.loaded_numbers(), number])
        try:
            await self._prove(release)
            await self.warm(release)
        except SegrecError:
            await self._load_again()
            raise
        self._releases.add(release)
        self._releases.set_healthy(True)

    async def _prove(self, release: Release) -> None:
        golden = release.manifest.golden
        embeddings = await self._encoder.encode(release.number, golden.inputs(), GOLDEN_TIMEOUT_SECONDS)
        difference = golden.difference(embeddings)
        if not difference <= golden.tolerance:
            raise DamagedRelease(
                f"release {release.number}: Triton's embeddings of the golden inputs differ by {difference:g}, more "
                f"than {golden.tolerance:g}: the encoder is not the one that was published"
            )

    async def _probe(self) -> None:
        """See that the encoder still gives the right answers; after a restart of Triton, load again."""
        active = self._releases.active
        if active is None or monotonic() - self._probed_at < PROBE_SECONDS:
            return
        self._probed_at = monotonic()
        try:
            if not await self._encoder.is_ready(active.number):
                await self.reload()
            await self.prove_active()
        except SegrecError as error:
            if self._releases.encoder_healthy:
                log.error("the encoder does not answer: %s", error)
            self._releases.set_healthy(False)
            return
        if not self._releases.encoder_healthy:
            log.info("the encoder answers again")
        self._releases.set_healthy(True)
        await self._probe_canary()

    async def _probe_canary(self) -> None:
        """A canary whose golden inputs do not come back right gets no traffic until they do."""
        number = self._releases.traffic.canary
        if not self._releases.is_loaded(number):
            return
        try:
            await self._prove(self._releases.get(number))
        except SegrecError as error:
            if not self._releases.broken(number):
                log.error("the canary gets no traffic, its users are answered by the active release: %s", error)
            self._releases.set_broken(number, str(error))
            return
        if self._releases.broken(number):
            log.info("release %d answers again as the canary", number)
            self._releases.set_broken(number, "")

    async def reload(self) -> None:
        """Load all loaded releases into Triton again. Raises `EncoderUnavailable`."""
        numbers = self._releases.loaded_numbers()
        if numbers:
            await self._have_loaded(numbers)

    async def _have_loaded(self, numbers: Sequence[int]) -> None:
        await asyncio.to_thread(self._shelf.check_for_triton)
        await self._encoder.load(numbers)

    async def prove_active(self) -> None:
        """Run the active release's golden inputs. Raises `SegrecError` when they do not come back right."""
        if self._releases.active is not None:
            await self._prove(self._releases.active)

    async def _load_again(self) -> None:
        """Have Triton drop what is not loaded here, at the next opportunity where it does not answer now."""
        try:
            await self._have_loaded(self._releases.loaded_numbers())
        except EncoderUnavailable as error:
            log.warning("releases could not be unloaded from Triton: %s", error)

    @asynccontextmanager
    async def holding(self, numbers: Collection[int], timeout_seconds: float) -> AsyncIterator[None]:
        """Have these releases loaded and proved, and stay so until the block ends.

        Needs a running `follow`. Raises what is wrong with one of them, or `EncoderUnavailable` when time is up.
        """
        self._asked.update(numbers)
        try:
            await self._until_loaded(numbers, timeout_seconds)
            yield
        finally:
            self._asked.subtract(numbers)

    async def _until_loaded(self, numbers: Collection[int], timeout_seconds: float) -> None:
        for number in numbers:
            self._shelf.forgive(number)
        try:
            async with asyncio.timeout(timeout_seconds):
                while missing := [number for number in numbers if not self._releases.is_loaded(number)]:
                    await self._next_round()
                    self._raise_what_failed(missing)
        except TimeoutError as error:
            names = ", ".join(map(str, missing))
            raise EncoderUnavailable(
                f"release {names} was not loaded within {timeout_seconds:g} s; nothing was changed: ask again"
            ) from error

    def _raise_what_failed(self, missing: Collection[int]) -> None:
        for number in missing:
            failure = self._shelf.failure(number)
            if failure is not None and not self._releases.is_loaded(number):
                raise failure

    async def _next_round(self) -> None:
        self._wake.set()
        await self._round.wait()


async def _not_warmed(release: Release) -> None:
    """There are no histories to warm it up with."""
