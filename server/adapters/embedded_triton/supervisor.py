"""Runs one Triton: starts it, watches it and its stubs, repairs or restarts it after failures, and stops it."""

import asyncio
import contextlib
import logging
import math
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import grpc
import psutil
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from server.adapters.embedded_triton.environment import DEFAULT_PATH, check_environment
from server.adapters.embedded_triton.private_socket import PrivateSocket
from server.adapters.embedded_triton.process import TritonProcess, log_tail
from server.adapters.embedded_triton.stubs import Stub
from server.core.errors import DamagedRelease, EncoderUnavailable, SegrecError, SetupError
from server.core.repository.layout import CONFIG_NAME, MODEL_NAME

logger = logging.getLogger(__name__)

START_SECONDS = 30.0
"""Longest time from the start of Triton to its first answer."""
STABLE_SECONDS = 60.0
"""After a run of this length, the back-off starts at its first value again."""
FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 10.0
WATCH_SECONDS = 0.5
"""Time between two checks of the stubs."""
PROBE_SECONDS = 1.0
"""Time between two probes with real inferences, one for each instance of the model."""
PROBE_LIMIT_SECONDS = 1.5
"""Longest wait for the answers of a probe. Triton itself reports a stub that hangs after one second."""
ALIVE_SECONDS = 1.0
"""Longest wait for the answer to the question whether Triton is alive."""
SILENT_PROBES = 3
"""Triton is restarted after this many probes in a row during which its gRPC did not answer at all."""
FAILING_SECONDS = 15.0
"""Triton is restarted when no probe has succeeded for this long although its gRPC answers."""
RESTARTS_FOR_WRONG_ANSWERS = 2
"""Wrong embeddings restart Triton at most this often until a probe succeeds: the release itself may be damaged."""
TRIES_BEFORE_RESTART = 2
"""Triton is restarted after this number of reloads that did not restore the stubs."""
AFTER_REPAIR_SECONDS = 2.0
"""For this long after a repair, reports of a hung stub are of calls to the old stubs."""

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)

Callback = Callable[[], Awaitable[None]]


class EmbeddedTriton:
    """The real Triton as a child process.

    Four failures are watched for:

    - `tritonserver` ends: it is started again on the same socket, with back-off.
    - A stub ends, which Triton's readiness does not show, or hangs (`report_hung_stub`): the directory of its version
      gets a new time stamp, so that the next load replaces this version while the others answer.
    - `probe` fails, because Triton does not answer at all or not as it should: Triton is restarted.
    - `probe` raises `DamagedRelease`, since embeddings are wrong: Triton is restarted, twice at most.

    After each of them `on_restart` is called, with back-off until it succeeds. It must load the releases again; for a
    release that is still loaded, that takes a millisecond.
    """

    def __init__(
        self,
        repository: Path,
        environment: Path = DEFAULT_PATH,
        *,
        log_path: Path = Path("triton.log"),
        on_restart: Callback | None = None,
        probe: Callback | None = None,
    ) -> None:
        self.restart_count = 0
        """Number of restarts since `start`."""
        self.abort_count = 0
        """Number of times that Triton ended itself by SIGABRT, which it does when a stub crashes while it loads."""
        self.repair_count = 0
        """Number of repairs of versions whose stub had ended."""
        self._repository = repository.absolute()
        self._environment_path = environment
        self._socket: PrivateSocket | None = None
        self._log_path = log_path
        self._on_restart = on_restart
        self._probe = probe
        self._process: TritonProcess | None = None
        self._channel: grpc.aio.Channel | None = None
        self._known_stubs: list[Stub] = []
        """The stubs that the last walk over all processes of this machine found."""
        self._hung_versions: set[int] = set()
        self._repaired_at = -math.inf
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = asyncio.Event()
        """Set while Triton runs with its releases; cleared from its end until the releases are loaded again."""

    def set_callbacks(self, on_restart: Callback, probe: Callback | None = None) -> None:
        """Set the callbacks after construction, for callbacks that need `address`."""
        self._on_restart = on_restart
        self._probe = probe

    def report_hung_stub(self, version: int) -> None:
        """Have the stubs of a version replaced, because Triton reported that one of them hangs."""
        if asyncio.get_running_loop().time() - self._repaired_at > AFTER_REPAIR_SECONDS:
            self._hung_versions.add(version)

    @property
    def address(self) -> str:
        """Address of Triton's gRPC endpoint, `unix:PATH`; the same across restarts, empty before `start`."""
        return self._socket.address if self._socket else ""

    @property
    def pid(self) -> int | None:
        """Process id of `tritonserver`; None while it does not run."""
        return self._process.pid if self._process and self._process.exit_code is None else None

    def stub_pids(self) -> list[int]:
        """Process ids of the stubs, one per instance of each loaded version."""
        return [stub.pid for stub in self._process.stubs()] if self._process else []

    async def start(self) -> None:
        """Start Triton and the watch; returns when Triton answers.

        Raises `SetupError` when the environment is missing, the socket cannot be made, or Triton ends or does not
        answer; in the last two cases the message contains the end of Triton's log.
        """
        self._environment = check_environment(self._environment_path)
        if not self._repository.is_dir():
            raise SetupError(f"The model repository {self._repository} does not exist")
        self._instance_count = _instance_count(self._repository / MODEL_NAME / CONFIG_NAME)
        self._socket = PrivateSocket()
        try:
            await self._launch(self._socket)
        except BaseException:
            self._socket.remove()
            raise
        self._ready.set()
        self._channel = grpc.aio.insecure_channel(self.address, options=_CHANNEL_OPTIONS)
        watches = (self._watch_server, self._watch_stubs, self._watch_probe)
        self._tasks = [asyncio.create_task(self._run_forever(watch)) for watch in watches]

    async def stop(self) -> None:
        """Stop the watch, Triton and its stubs. Returns when all processes have ended; can be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._channel:
            await self._channel.close()
            self._channel = None
        if self._process:
            await self._process.stop()
            self._process = None
        if self._socket:
            self._socket.remove()

    async def _launch(self, private_socket: PrivateSocket) -> None:
        """Start a process and wait until it answers; a process that does not answer is stopped."""
        log_start = self._log_path.stat().st_size if self._log_path.exists() else 0
        self._process = process = await TritonProcess.start(
            self._environment, self._repository, private_socket, self._log_path
        )
        try:
            await self._wait_until_ready(process)
        except BaseException as error:
            await asyncio.shield(process.stop())
            if isinstance(error, SetupError):
                tail = log_tail(self._log_path, log_start)
                raise SetupError(f"{error}. The end of its log {self._log_path}:\n{tail}") from None
            raise
        logger.info("Triton answers on %s (pid %d, log %s)", self.address, process.pid, self._log_path)

    async def _wait_until_ready(self, process: TritonProcess) -> None:
        ended = asyncio.create_task(process.wait())
        ready = asyncio.create_task(_wait_for_server(self.address))
        try:
            await asyncio.wait({ended, ready}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise SetupError(f"Triton ended during its start with exit code {ended.result()}")
            if not ready.done():
                raise SetupError(f"Triton did not answer within {START_SECONDS:.0f} seconds")
            ready.result()
        finally:
            for task in (ended, ready):
                task.cancel()
            await asyncio.gather(ended, ready, return_exceptions=True)

    async def _run_forever(self, watch: Callback) -> None:
        """Run a watch for ever; an error is logged, and the watch starts again."""
        while True:
            try:
                await watch()
            except Exception:
                logger.exception("the watch over Triton failed; trying again")
                await asyncio.sleep(WATCH_SECONDS)

    async def _watch_server(self) -> None:
        """Start Triton again each time it ends."""
        loop, backoff = asyncio.get_running_loop(), FIRST_BACKOFF_SECONDS
        while self._process and self._socket:
            started = loop.time()
            exit_code = await self._process.wait()
            self._ready.clear()
            self.abort_count += exit_code == -signal.SIGABRT
            if loop.time() - started > STABLE_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            logger.error("Triton ended with exit code %d; starting it again in %.1f s", exit_code, backoff)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)
            await self._process.stop()  # ends the stubs, which would take two seconds by themselves
            try:
                await self._launch(self._socket)
            except SetupError as error:
                logger.error("%s", error)
                continue
            self.restart_count += 1
            await self._call_on_restart()
            if self.pid is not None:
                self._ready.set()

    async def _watch_stubs(self) -> None:
        """Repair ready versions that lack a stub; restart Triton when the repair does not help."""
        broken_checks: Counter[int] = Counter()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await self._ready.wait()
            broken, hung = await self._versions_without_stub(), self._hung_versions
            self._hung_versions = set()
            broken_checks = Counter({version: broken_checks[version] + 1 for version in broken})
            if hung - broken:
                logger.error("a stub of the releases %s hangs; loading these releases again", sorted(hung - broken))
                broken |= hung
            if not broken:
                continue
            logger.error("the stubs of the releases %s are replaced", sorted(broken))
            if max(broken_checks.values(), default=0) > TRIES_BEFORE_RESTART:
                self._kill("loading again did not restore the stubs")
                continue
            await self._repair(broken)
            self._repaired_at = asyncio.get_running_loop().time()
            self._hung_versions = set()

    async def _repair(self, versions: set[int]) -> None:
        """Load versions again, then kill the remaining stubs of their old instances.

        Triton may keep the sibling of a killed stub for ever. The wait of half a second lets its last call end.
        """
        self.repair_count += 1
        stale = [stub.process for stub in await self._stubs() if stub.version in versions]
        for version in versions:
            with contextlib.suppress(OSError):  # missing or read-only: the restart will repair it
                os.utime(self._repository / MODEL_NAME / str(version))
        await self._call_on_restart()
        await asyncio.sleep(WATCH_SECONDS)
        still_broken = await self._versions_without_stub(stale)
        if still_broken.isdisjoint(versions):
            for stub in stale:
                with contextlib.suppress(psutil.NoSuchProcess):
                    stub.kill()

    async def _versions_without_stub(self, ignored: Sequence[psutil.Process] = ()) -> set[int]:
        """Versions that Triton reports as ready and that have fewer stubs than instances, `ignored` not counted.

        Looks at the stubs that are known, and at all processes of this machine only where these are too few: a walk
        over thousands of processes takes a tenth of a core.
        """
        if self.pid is None or self._channel is None:
            return set()
        ready = await _ready_versions(self._channel)
        lacking = self._lacking(ready, [stub for stub in self._known_stubs if stub.is_running], ignored)
        return lacking and self._lacking(ready, await self._stubs(), ignored)

    def _lacking(self, ready: set[int], stubs: Sequence[Stub], ignored: Sequence[psutil.Process]) -> set[int]:
        counts = Counter(stub.version for stub in stubs if stub.process not in ignored)
        return {version for version in ready if counts[version] < self._instance_count}

    async def _stubs(self) -> list[Stub]:
        """The running stubs with their versions; read in a thread, because many processes make it slow."""
        process = self._process
        if process is None:
            return []
        self._known_stubs = await asyncio.to_thread(lambda: [Stub.of(stub) for stub in process.stubs()])
        return self._known_stubs

    async def _watch_probe(self) -> None:
        """Restart Triton when the probes fail; how soon depends on whether Triton answers at all."""
        loop = asyncio.get_running_loop()
        good_at, silent, wrong_restarts = loop.time(), 0, 0
        while True:
            if not silent:
                await asyncio.sleep(PROBE_SECONDS)
            if not self._ready.is_set():
                await self._ready.wait()
                good_at, silent = loop.time(), 0
            problem, answers = await asyncio.gather(self._run_probes(), _answers(self._channel))
            if problem is None:
                good_at, silent, wrong_restarts = loop.time(), 0, 0
                continue
            if not self._ready.is_set():
                continue  # Triton ended in the meantime and is being restarted
            logger.warning("a probe of Triton failed: %s", problem)
            silent = 0 if answers else silent + 1
            if isinstance(problem, DamagedRelease):
                if wrong_restarts < RESTARTS_FOR_WRONG_ANSWERS:
                    wrong_restarts += 1
                    self._kill("its embeddings are wrong")
            elif silent >= SILENT_PROBES:
                self._kill("it does not answer")
            elif loop.time() - good_at > FAILING_SECONDS:
                self._kill(f"no probe has succeeded for {FAILING_SECONDS:g} s")

    async def _run_probes(self) -> SegrecError | None:
        """Probe once for each instance, at the same time, so that one hung stub of several is found."""
        if self._probe is None:
            return None
        probes = [asyncio.wait_for(self._probe(), PROBE_LIMIT_SECONDS) for _ in range(self._instance_count)]
        for result in await asyncio.gather(*probes, return_exceptions=True):
            if isinstance(result, TimeoutError):
                return EncoderUnavailable(f"no answer within {PROBE_LIMIT_SECONDS:g} s")
            if isinstance(result, SegrecError):
                return result
            if isinstance(result, BaseException):
                raise result
        return None

    def _kill(self, why: str) -> None:
        """Kill Triton; the watch starts it again."""
        logger.error("restarting Triton: %s", why)
        self._ready.clear()
        if self._process:
            self._process.kill()

    async def _call_on_restart(self) -> None:
        """Call `on_restart` until it succeeds or Triton ends."""
        backoff = FIRST_BACKOFF_SECONDS
        while self._on_restart and self.pid is not None:
            try:
                await self._on_restart()
            except SegrecError as error:
                logger.error("loading after a restart failed; trying again in %.1f s: %s", backoff, error)
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)
            else:
                return


def _instance_count(config_path: Path) -> int:
    """Number of stubs of a version by config.pbtxt; on several GPUs there are more. Raises `SetupError`."""
    try:
        config = text_format.Parse(config_path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise SetupError(f"{config_path} cannot be read: {error}") from error
    return sum(group.count or 1 for group in config.instance_group) or 1


@contextlib.asynccontextmanager
async def _connect(address: str) -> AsyncIterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    async with grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


async def _wait_for_server(address: str) -> None:
    """Return when Triton reports that it is ready; tries to connect until then."""
    async with _connect(address) as triton:
        await triton.ServerReady(service_pb2.ServerReadyRequest(), wait_for_ready=True)


async def _answers(channel: grpc.aio.Channel | None) -> bool:
    """Whether Triton's gRPC answers within `ALIVE_SECONDS`, which it also does while its stubs are busy."""
    if channel is None:
        return False
    try:
        triton = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await triton.ServerLive(service_pb2.ServerLiveRequest(), timeout=ALIVE_SECONDS)
    except grpc.aio.AioRpcError:
        return False
    return True


async def _ready_versions(channel: grpc.aio.Channel) -> set[int]:
    """Versions that Triton reports as ready; empty when it does not answer."""
    request = service_pb2.RepositoryIndexRequest(ready=True)
    try:
        triton = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        index = await triton.RepositoryIndex(request, timeout=WATCH_SECONDS)
    except grpc.aio.AioRpcError:
        return set()
    return {int(model.version) for model in index.models if model.name == MODEL_NAME and model.version}
