"""Follows the model repository: finds releases, checks and loads them, warms them up, and unloads idle ones."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic

from server.adapters.ports import EncoderClient
from server.core.errors import DamagedRelease, EncoderUnavailable, SegrecError
from server.core.release import Release, SegmentNames
from server.core.repository.read import read_release
from server.core.rules import RulesInForce
from server.releases.registry import ReleaseRegistry
from server.releases.unused import UnusedReleases

log = logging.getLogger(__name__)

GOLDEN_TIMEOUT_SECONDS = 10.0
"""Longest wait for the golden inputs of a release that has just been loaded."""
PROBE_LIMIT_SECONDS = 3.0
"""Longest wait for the golden inputs of a probe; a busy Triton needs some time."""
PROBE_SECONDS = 1.0
"""Time between two runs of the active release's golden inputs, which detect a dead Triton without traffic."""
UNUSED_CHECK_SECONDS = 30.0
"""Time between two looks for releases of a shared Triton that nobody uses."""


class Loader:
    """Keeps these releases loaded: those that the traffic names, the newest good one, and the last `keep` active ones.

    `refresh` does one round, `follow` repeats it. `read` reads and checks a release, and raises
    `DamagedRelease`. When a release fails, the releases that answer go on answering, `directory` records the error,
    and the loader tries again with back-off.

    All releases answer with the `names` of segments, and by the `rules`.

    With `shared`, other servers use the same Triton: releases that are loaded there stay loaded until nobody has
    used them for `UNUSED_SECONDS`.
    """

    def __init__(
        self,
        releases: ReleaseRegistry,
        encoder: EncoderClient,
        keep: int,
        read: Callable[[int], Release] | None = None,
        shared: bool = False,
        clock: Callable[[], float] = monotonic,
        names: SegmentNames | None = None,
        rules: RulesInForce | None = None,
    ) -> None:
        self._names = names or SegmentNames()
        self._rules = rules or RulesInForce()
        self._releases = releases
        self._directory = releases.directory
        self._encoder = encoder
        self._keep = keep
        self._read = read or (lambda number: read_release(self._directory.path(number)))
        self._shared = shared
        self._clock = clock
        self._unused = UnusedReleases(clock)
        self._looked_for_unused_at = clock()
        self._requested: Counter[int] = Counter()
        self._probed_at = -math.inf
        self._problem = ""
        self._wake = asyncio.Event()
        self._round_ended = asyncio.Event()
        self.tried = asyncio.Event()
        """Is set when the first round has ended: what can be loaded is loaded."""
        self.warm_up: Callable[[Release], Awaitable[None]] = _no_warm_up
        """Runs histories of stored users through a release before it answers. Raises `SegrecError` on failure."""

    async def follow(self, poll_seconds: float, stop: asyncio.Event) -> None:
        """Refresh until `stop` is set. Never ends by an exception."""
        stopping = asyncio.ensure_future(stop.wait())
        while not stop.is_set():
            self._wake.clear()
            try:
                await self.refresh()
            except OSError as error:
                self._say_once(f"the model repository cannot be read ({error}); trying again")
            except Exception:
                log.exception("the model repository could not be read; trying again")
            else:
                self._problem = ""
            self.tried.set()
            self._round_ended.set()
            self._round_ended = asyncio.Event()
            waking = asyncio.ensure_future(self._wake.wait())
            await asyncio.wait((stopping, waking), timeout=poll_seconds, return_when=asyncio.FIRST_COMPLETED)
            waking.cancel()

    def _say_once(self, problem: str) -> None:
        if problem != self._problem:
            log.error(problem)
        self._problem = problem

    def refresh_soon(self) -> None:
        """Begin the next round now, and probe the encoder in it."""
        self._probed_at = -math.inf
        self._wake.set()

    def probe_soon(self) -> None:
        """Probe the encoder in the next round, for example because a call failed."""
        self._probed_at = -math.inf

    async def refresh(self) -> None:
        """Do one round. An error of one release is recorded for that release; any other error is raised."""
        numbers = await asyncio.to_thread(self._directory.numbers)
        self._directory.keep_failures_of({*numbers, *self._releases.traffic.named_releases(), *(+self._requested)})
        await self._probe()
        await self._unload_idle(numbers)
        await self._load_named(numbers)
        await self._load_newest(numbers)
        await self._load_earlier(numbers)
        await self._unload_idle(numbers)
        if self._shared:
            await self._unload_unused(numbers)

    async def _unload_idle(self, numbers: Collection[int]) -> None:
        """Unload releases that nobody needs; also before a load, which fails while a loaded release has no files."""
        if self._releases.drop_idle(self._keep, set(+self._requested), numbers):
            await self._unload_others()

    async def _unload_unused(self, numbers: Sequence[int]) -> None:
        """Unload releases from a shared Triton that no server needs, once this server answers."""
        if self._releases.active is None or self._clock() - self._looked_for_unused_at < UNUSED_CHECK_SECONDS:
            return
        self._looked_for_unused_at = self._clock()
        wanted = {*self._releases.loaded_numbers(), *self._releases.traffic.named_releases(), *(+self._requested)}
        try:
            unused = self._unused.find(await self._encoder.inference_counts(), wanted | set(numbers[:1]))
        except EncoderUnavailable:
            return
        if unused:
            log.info("the releases %s are unloaded: no server has used them lately", sorted(unused))
            await self._unload_others(unused)

    async def _load_named(self, numbers: Collection[int]) -> None:
        """Load the releases of the traffic and of `hold_loaded`, the most important first."""
        traffic = self._releases.traffic
        earlier = [number for number in traffic.previous[:1] if number in numbers]
        for number in (traffic.stable, traffic.canary, traffic.shadow, *earlier, *(+self._requested)):
            if number and not self._releases.is_loaded(number):
                await self._try_to_load(number)

    async def _load_newest(self, numbers: Collection[int]) -> None:
        """Load the newest good release that does not stand by: it answers when the traffic names no stable release."""
        newest = self._releases.newest_answering()
        for number in numbers:
            if number <= newest:
                return
            reason = await asyncio.to_thread(self._directory.stands_by, number)
            if reason:
                self._releases.note_standby(number, reason)
            elif await self._try_to_load(number):
                return

    async def _load_earlier(self, numbers: Collection[int]) -> None:
        """After a start, load the release that a roll-back would go to, so that a roll-back is immediate."""
        active = self._releases.active
        if active is None or self._keep < 2 or self._releases.traffic.previous or len(self._releases.actives) > 1:
            return
        for number in numbers:
            if number >= active.number:
                continue
            reason = await asyncio.to_thread(self._directory.stands_by, number)
            if not reason and (self._releases.is_loaded(number) or await self._try_to_load(number)):
                self._releases.remember_earlier(number)
                return

    async def _try_to_load(self, number: int) -> bool:
        """Load a release unless `directory` says to wait; returns whether the release is loaded now."""
        signature = await asyncio.to_thread(self._directory.signature, number)
        if self._directory.is_backing_off(number, signature):
            return False
        self._releases.loading = number
        try:
            await self._load(number)
        except SegrecError as error:
            self._directory.record_failure(number, error, signature)
            return False
        finally:
            self._releases.loading = 0
        self._directory.clear_failure(number)
        return True

    async def _load(self, number: int) -> None:
        release = replace(await asyncio.to_thread(self._read, number), names=self._names, rules=self._rules)
        is_of_others = self._shared and await self._encoder.is_ready(number)
        await self._load_into_triton([*self._releases.loaded_numbers(), number])
        try:
            await self._check_golden_inputs(release, GOLDEN_TIMEOUT_SECONDS)
            await self.warm_up(release)
        except DamagedRelease:
            await self._unload_others(() if is_of_others else {number})
            raise
        except SegrecError:
            # On a shared Triton others may answer from it by now; what nobody uses goes later (`_unload_unused`).
            if not self._shared:
                await self._unload_others()
            raise
        self._releases.add(release)
        self._releases.set_healthy(True)

    async def _check_golden_inputs(self, release: Release, timeout_seconds: float = PROBE_LIMIT_SECONDS) -> None:
        golden = release.manifest.golden
        embeddings = await self._encoder.encode(release.number, golden.inputs(), timeout_seconds)
        difference = golden.difference(embeddings)
        if not difference <= golden.tolerance:
            raise DamagedRelease(
                f"release {release.number}: Triton's embeddings of the golden inputs differ by {difference:g}, more "
                f"than {golden.tolerance:g}: Triton does not run the encoder that was published"
            )

    async def _probe(self) -> None:
        """Check the encoder by golden inputs every `PROBE_SECONDS`; load again when Triton has lost a release.

        An active release that Triton cannot load again, or whose embeddings are wrong, is given up for another one
        that is loaded and passes.
        """
        if self._releases.active is None or self._clock() - self._probed_at < PROBE_SECONDS:
            return
        self._probed_at = self._clock()
        try:
            if not await self._are_ready():
                await self.reload()
            await self._check_active_or_replace()
        except SegrecError as error:
            if self._releases.encoder_healthy:
                log.error("the encoder does not answer: %s", error)
            self._releases.set_healthy(False)
            return
        if not self._releases.encoder_healthy:
            log.info("the encoder answers again")
        self._releases.set_healthy(True)
        await self._probe_canary()

    async def _check_active_or_replace(self) -> None:
        active = self._releases.active
        try:
            await self.check_active()
        except DamagedRelease as error:
            if active is None or not await self._another_passes(active.number):
                raise
            await self._give_up(active.number, error)
            await self._unload_others({active.number})
            await self.check_active()

    async def _another_passes(self, number: int) -> bool:
        """Whether a loaded release other than this one passes its golden inputs."""
        for other in self._releases.loaded_numbers():
            if other != number:
                try:
                    await self._check_golden_inputs(self._releases.get(other))
                except SegrecError:
                    continue
                return True
        return False

    async def _give_up(self, number: int, error: SegrecError) -> None:
        """Stop answering from a release that Triton cannot run; the next rounds try to load it again."""
        signature = await asyncio.to_thread(self._directory.signature, number)
        self._directory.record_failure(number, error, signature)
        self._releases.remove(number)

    async def _are_ready(self) -> bool:
        """Whether Triton has all loaded releases: it may have restarted, or another server unloaded one.

        Raises `EncoderUnavailable` when Triton does not answer, since loading would then wait for long.
        """
        return set(self._releases.loaded_numbers()) <= (await self._encoder.inference_counts()).keys()

    async def _probe_canary(self) -> None:
        """Give a canary that fails its golden inputs no traffic until it passes them again."""
        number = self._releases.traffic.canary
        if not self._releases.is_loaded(number):
            return
        try:
            await self._check_golden_inputs(self._releases.get(number))
        except SegrecError as error:
            if not self._releases.broken(number):
                log.error("the canary gets no traffic; the active release answers its users: %s", error)
            self._releases.set_broken(number, str(error))
            return
        if self._releases.broken(number):
            log.info("release %d answers again as the canary", number)
            self._releases.set_broken(number, "")

    async def reload(self) -> None:
        """Load all loaded releases into Triton again.

        A release that Triton cannot load again is given up while another one answers. Raises `EncoderUnavailable` when
        Triton has none of them.
        """
        numbers = self._releases.loaded_numbers()
        if not numbers:
            return
        try:
            await self._load_into_triton(numbers)
        except EncoderUnavailable as error:
            lost = [number for number in numbers if not await self._encoder.is_ready(number)]
            if len(lost) in (0, len(numbers)):
                raise
            for number in lost:
                await self._give_up(number, error)

    async def _load_into_triton(self, numbers: Sequence[int], unload: Collection[int] = ()) -> None:
        """Load these releases. A shared Triton keeps all others but those in `unload` and those without a directory."""
        await asyncio.to_thread(self._directory.check_for_triton)
        keep = lambda: set(self._directory.numbers()) - set(unload)  # noqa: E731
        await self._encoder.load(numbers, keep if self._shared else None)

    async def check_active(self) -> None:
        """Check the active release by its golden inputs. Raises `SegrecError` when their embeddings differ."""
        if self._releases.active is not None:
            await self._check_golden_inputs(self._releases.active)

    async def _unload_others(self, unload: Collection[int] = ()) -> None:
        """Unload what is not loaded here, but of a shared Triton `unload` alone; see `_load_into_triton`.

        When Triton does not answer, the next load does it.
        """
        try:
            await self._load_into_triton(self._releases.loaded_numbers(), unload)
        except EncoderUnavailable as error:
            log.warning("releases could not be unloaded from Triton: %s", error)

    @asynccontextmanager
    async def hold_loaded(self, numbers: Collection[int], timeout_seconds: float) -> AsyncIterator[None]:
        """Load and check these releases, and keep them loaded until the block ends.

        Needs a running `follow`. Raises the error of the release that fails, or `EncoderUnavailable` after
        `timeout_seconds`.
        """
        self._requested.update(numbers)
        try:
            await self._until_loaded(numbers, timeout_seconds)
            yield
        finally:
            self._requested.subtract(numbers)

    async def _until_loaded(self, numbers: Collection[int], timeout_seconds: float) -> None:
        for number in numbers:
            self._directory.clear_failure(number)
        try:
            async with asyncio.timeout(timeout_seconds):
                while missing := [number for number in numbers if not self._releases.is_loaded(number)]:
                    await self._next_round()
                    self._raise_failure(missing)
        except TimeoutError as error:
            names = ", ".join(map(str, missing))
            raise EncoderUnavailable(
                f"release {names} was not loaded within {timeout_seconds:g} s; nothing was changed: try again"
            ) from error

    def _raise_failure(self, missing: Collection[int]) -> None:
        for number in missing:
            failure = self._directory.failure(number)
            if failure is not None and not self._releases.is_loaded(number):
                raise failure

    async def _next_round(self) -> None:
        self._wake.set()
        await self._round_ended.wait()


async def _no_warm_up(release: Release) -> None:
    """The default of `Loader.warm_up`: do nothing."""
