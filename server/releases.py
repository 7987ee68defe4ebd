"""Which releases there are, which are loaded, and which one answers; follows the model repository."""

import asyncio
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from time import monotonic

from server.adapters.ports import Encoder
from server.core.errors import DamagedRelease, EncoderUnavailable, NoRelease, NotFound, SegrecError
from server.core.release import Manifest, Release, read_manifest, read_release
from server.core.repository import MODEL_NAME

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
GOLDEN_TIMEOUT_SECONDS = 10.0
PROBE_SECONDS = 2.0
"""How often the active release's golden inputs are run, so that a dead Triton is noticed without traffic."""

_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


class State(Enum):
    """Where a release is in its life; see the API's `ReleaseState`."""

    AVAILABLE = auto()
    LOADING = auto()
    ACTIVE = auto()
    STANDBY = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Status:
    """A release on disk. `manifest` is None when it cannot be read."""

    number: int
    state: State
    failure: str
    manifest: Manifest | None


@dataclass(slots=True)
class _Failure:
    message: str
    signature: tuple[float, int]
    attempts: int
    retry_at: float


class Releases:
    """The loaded releases and the active one. Requests take a snapshot with `lease` and use nothing else.

    `refresh` does one round: discover, check, load, prove by golden inputs, swap one reference, unload what is old
    and idle. Whatever fails leaves the active release answering.
    """

    def __init__(self, repository: Path, encoder: Encoder, keep: int) -> None:
        self._directory = repository / MODEL_NAME
        self._encoder = encoder
        self._keep = keep
        self._loaded: dict[int, Release] = {}
        self._active: Release | None = None
        self._loading = 0
        self._leases: Counter[int] = Counter()
        self._failures: dict[int, _Failure] = {}
        self._probed_at = -math.inf
        self._named: set[str] = set()
        self.encoder_healthy = False
        self.on_change: list[Callable[[], None]] = []
        """Called after the active release or the encoder's health has changed."""
        self.on_unload: list[Callable[[int], None]] = []
        """Called with the number of a release that no longer answers."""

    @property
    def active(self) -> Release | None:
        """The release that answers by default."""
        return self._active

    def get(self, number: int = 0) -> Release:
        """The loaded release of this number, 0 for the active one. Raises `NoRelease` or `NotFound`."""
        if self._active is None:
            raise NoRelease("no release is active: publish one with `segrec-train publish`, then ask again")
        if number == 0 or number == self._active.number:
            return self._active
        if number not in self._loaded:
            loaded = ", ".join(map(str, sorted(self._loaded)))
            raise NotFound(f"release {number} is not loaded; loaded are {loaded}", "release")
        return self._loaded[number]

    @contextmanager
    def lease(self, number: int = 0) -> Iterator[Release]:
        """A release that stays loaded until the block ends. Raises as `get`."""
        release = self.get(number)
        self._leases[release.number] += 1
        try:
            yield release
        finally:
            self._leases[release.number] -= 1

    def loaded_numbers(self) -> list[int]:
        """Numbers of all loaded releases, ascending."""
        return sorted(self._loaded)

    def failed_count(self) -> int:
        """How many releases on disk failed their checks."""
        return len(self._failures)

    def statuses(self) -> list[Status]:
        """All releases on disk, newest first."""
        return [self._status(number) for number in self._discover()]

    def status(self, number: int) -> Status:
        """One release on disk. Raises `NotFound`."""
        if not (self._directory / str(number)).is_dir():
            raise NotFound(f"there is no release {number} in {self._directory}", "release")
        return self._status(number)

    def _status(self, number: int) -> Status:
        loaded = self._loaded.get(number)
        if loaded is not None:
            state = State.ACTIVE if loaded is self._active else State.STANDBY
            return Status(number, state, "", loaded.manifest)
        failure = self._failures.get(number)
        try:
            manifest = read_manifest(self._directory / str(number))
        except DamagedRelease as error:
            return Status(number, State.FAILED, failure.message if failure else str(error), None)
        if failure is not None:
            return Status(number, State.FAILED, failure.message, manifest)
        return Status(number, State.LOADING if number == self._loading else State.AVAILABLE, "", manifest)

    def _discover(self) -> list[int]:
        """Numbers of the release directories, newest first. Anything else is named once in the log."""
        if not self._directory.is_dir():
            return []
        numbers = []
        for entry in self._directory.iterdir():
            if _NUMBER.fullmatch(entry.name) and entry.is_dir():
                numbers.append(int(entry.name))
            elif entry.is_dir() and entry.name not in self._named:
                self._named.add(entry.name)
                log.warning("directory is not a release number and is ignored: %s", entry)
        return sorted(numbers, reverse=True)

    async def follow(self, poll_seconds: float, stop: asyncio.Event) -> None:
        """Refresh until `stop` is set. Never ends by an exception."""
        while not stop.is_set():
            try:
                await self.refresh()
            except Exception:
                log.exception("looking at the model repository failed; trying again")
            try:
                await asyncio.wait_for(stop.wait(), poll_seconds)
            except TimeoutError:
                continue

    async def refresh(self) -> None:
        """One round. Errors of a release are kept with it; others raise."""
        numbers = await asyncio.to_thread(self._discover)
        self._forget_gone(numbers)
        await self._probe()
        newest = self._active.number if self._active else 0
        for number in numbers:
            if number <= newest:
                break
            if await self._try(number):
                break
        await self._unload_old()

    def _forget_gone(self, numbers: list[int]) -> None:
        for number in set(self._failures) - set(numbers):
            del self._failures[number]

    async def _try(self, number: int) -> bool:
        """Activate a release unless it failed lately and has not changed since."""
        failure = self._failures.get(number)
        directory = self._directory / str(number)
        signature = await asyncio.to_thread(_signature, directory)
        if failure and failure.signature == signature and monotonic() < failure.retry_at:
            return False
        self._loading = number
        try:
            await self._activate(number, directory)
        except SegrecError as error:
            transient = isinstance(error, EncoderUnavailable)
            self._failed(number, str(error), signature, FIRST_RETRY_SECONDS if transient else LONGEST_RETRY_SECONDS)
            return False
        finally:
            self._loading = 0
        self._failures.pop(number, None)
        return True

    def _failed(self, number: int, message: str, signature: tuple[float, int], longest_pause: float) -> None:
        before = self._failures.get(number)
        attempts = before.attempts + 1 if before and before.signature == signature else 1
        pause = min(FIRST_RETRY_SECONDS * 2.0 ** (attempts - 1), longest_pause)
        self._failures[number] = _Failure(message, signature, attempts, monotonic() + pause)
        if before is None or before.message != message:
            log.error("release %d is not activated: %s", number, message)

    async def _activate(self, number: int, directory: Path) -> None:
        release = await asyncio.to_thread(read_release, directory)
        await self._encoder.load([*self.loaded_numbers(), number])
        try:
            await self._prove(release)
        except SegrecError:
            await self._load_again()
            raise
        self._loaded[number] = release
        self._active = release
        self._set_healthy(True)
        log.info("release %d is active", number)
        self._changed()

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
        """See that the encoder still gives the right answer; after a restart of Triton, load again."""
        if self._active is None or monotonic() - self._probed_at < PROBE_SECONDS:
            return
        self._probed_at = monotonic()
        try:
            if not await self._encoder.is_ready(self._active.number):
                await self.reload()
            await self.prove_active()
        except SegrecError as error:
            if self.encoder_healthy:
                log.error("the encoder does not answer: %s", error)
            self._set_healthy(False)
            return
        if not self.encoder_healthy:
            log.info("the encoder answers again")
        self._set_healthy(True)

    async def reload(self) -> None:
        """Load all loaded releases into Triton again. Raises `EncoderUnavailable`."""
        if self._loaded:
            await self._encoder.load(self.loaded_numbers())

    async def prove_active(self) -> None:
        """Run the active release's golden inputs. Raises `SegrecError` when they do not come back right."""
        if self._active is not None:
            await self._prove(self._active)

    def probe_soon(self) -> None:
        """Have the next round probe the encoder, since a call has just failed."""
        self._probed_at = -math.inf

    async def _unload_old(self) -> None:
        """Unload idle releases beyond `keep`, the oldest first."""
        excess = self.loaded_numbers()[: -self._keep]
        idle = [number for number in excess if not self._leases[number] and self._loaded[number] is not self._active]
        if not idle:
            return
        for number in idle:
            del self._loaded[number]
            for callback in self.on_unload:
                callback(number)
        await self._load_again()

    async def _load_again(self) -> None:
        """Have Triton drop what is not loaded here, at the next opportunity where it does not answer now."""
        try:
            await self._encoder.load(self.loaded_numbers())
        except EncoderUnavailable as error:
            log.warning("releases could not be unloaded from Triton: %s", error)

    def _set_healthy(self, healthy: bool) -> None:
        if healthy != self.encoder_healthy:
            self.encoder_healthy = healthy
            self._changed()

    def _changed(self) -> None:
        for callback in self.on_change:
            callback()


def _signature(directory: Path) -> tuple[float, int]:
    """Changes when a file of the directory does."""
    stats = [path.stat() for path in directory.iterdir()] if directory.is_dir() else []
    return max((stat.st_mtime for stat in stats), default=0.0), sum(stat.st_size for stat in stats)
