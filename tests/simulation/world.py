"""One simulated history: servers, Tritons, one Valkey, one repository; callers, operators and faults drawn from a seed.

Releases, loading, traffic, promotion, the guard, the pipeline, the services and the Valkey store are the product's own
code; Triton, the network, threads and time are simulated. After a while everything is mended, and then all must be
well. `tests.simulation.rules` says what must hold.
"""

import asyncio
import logging
import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fakeredis
from segrec.v1 import common_pb2, event_service_pb2, segrec_service_pb2
from tritonclient.grpc import service_pb2_grpc

from server.core.errors import SegrecError
from server.core.history import Event
from server.core.release import Release
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from server.core.repository.traffic import Guard, Traffic, read_traffic
from server.monitoring import canary_guard
from server.releases import directory
from server.releases import loader as loading
from server.releases import promotion as promoting
from server.releases.promotion import Promotion
from tests.simulation.loop import SimulatedLoop, simulated_time
from tests.simulation.parts import Triton, Valkey, ValkeyFaults
from tests.simulation.releases import LARGEST_RELEASE, good_release, memory_directory, templates
from tests.simulation.rules import Record, Rules, Violation
from tests.simulation.servers import Context, Server
from tests.support.releases import item_id

LEAST_STORY_SECONDS, LONGEST_STORY_SECONDS = 5.0, 30.0
MENDED_SECONDS = 30.0
"""How long after the last fault everything must be well again."""
LONGEST_RETRY_SECONDS = 8.0
"""In the place of the product's minute, so that the end need not be as long."""
CALLERS = 3
CALLS_PER_SECOND, MENDED_CALLS_PER_SECOND = 4.0, 1.0
"""Of each caller."""
USERS = [f"user-{number}" for number in range(6)]
START_OF_TIME = 1_700_000_000.0


def run_history(seed: int) -> list[str]:
    """Play the history of a seed; returns what happened, line by line. Raises `Violation`."""
    rng = random.Random(seed)
    loop = SimulatedLoop(rng)
    root = Path(tempfile.mkdtemp(prefix="segrec-history-", dir=memory_directory()))
    world = World(root, rng, loop)
    try:
        with world.in_place():
            loop.run_until_complete(world.play())
    except Violation as violation:
        violation.add_note(f"seed {seed}; replay with: python -m tests.simulation --seed {seed}")
        violation.add_note("\n".join(world.rules.trace[-40:]))
        raise
    finally:
        _end(loop)
        shutil.rmtree(root, ignore_errors=True)
    return [line.replace(str(root), "") for line in world.rules.trace]


def _end(loop: SimulatedLoop) -> None:
    """Cancel what is left. Its errors are of the end, and say nothing."""
    loop.set_exception_handler(lambda *_: None)
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


class Unexpected(logging.Handler):
    """A log in which an exception breaks a rule."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self._rules.violate(f"an error that nobody expected: {record.getMessage()}: {record.exc_info[1]!r}")


class World:
    """See the module."""

    def __init__(self, root: Path, rng: random.Random, loop: SimulatedLoop) -> None:
        self.rng, self.loop = rng, loop
        self.repository = root / "repository"
        self.rules = Rules(loop.time, USERS)
        self.servers: dict[str, Server] = {}
        self._crashed: list[Server] = []  # kept, so that nothing of theirs is collected as lost
        self._server_names = iter(range(1, 1000))
        self._event_numbers = iter(range(1, 1_000_000))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the simulated parts in the place of the real ones until the block ends."""
        with ExitStack() as stack:
            stack.enter_context(simulated_time(self.loop, self.rng))

            def put(owner: object, name: str, value: object) -> None:
                stack.enter_context(patch.object(owner, name, value))

            put(service_pb2_grpc, "GRPCInferenceServiceStub", lambda channel: channel.triton)
            put(loading, "read_release", self._read_release)
            put(directory, "LONGEST_RETRY_SECONDS", LONGEST_RETRY_SECONDS)
            for module in (promoting, canary_guard):
                put(module, "change_traffic", self._recording(module.change_traffic))
            stack.enter_context(self._log_in_place())
            self.loop.set_exception_handler(self._on_unseen_error)
            yield

    @contextmanager
    def _log_in_place(self) -> Iterator[None]:
        """Nothing of the server's log is shown; a traceback in it breaks a rule."""
        handler, logger = Unexpected(self.rules), logging.getLogger("server")
        logger.addHandler(handler)
        with patch.object(logger, "propagate", False):
            yield
        logger.removeHandler(handler)

    async def play(self) -> None:
        """Callers, operators and faults for a drawn time; then all is mended, and must be well."""
        self._start()
        callers = [self._call_for_ever(CALLS_PER_SECOND) for _ in range(CALLERS)]
        story = asyncio.gather(*callers, self._operate_for_ever(), self._break_for_ever())
        try:
            await self._until(self.loop.time() + self.rng.uniform(LEAST_STORY_SECONDS, LONGEST_STORY_SECONDS), story)
        finally:
            story.cancel()
        with suppress(asyncio.CancelledError):
            await story
        self._mend()
        mended = asyncio.gather(*(self._call_for_ever(MENDED_CALLS_PER_SECOND) for _ in range(CALLERS)))
        try:
            await self._until(self.loop.time() + MENDED_SECONDS, mended)
            # A change that was asked for before may have waited for loads until now: it has its time too.
            longest = max(server.longest_change_seconds for server in self.servers.values())
            await self._until(self.rules.traffics[-1][0] + longest, mended)
        finally:
            mended.cancel()
        await self._check_end()

    async def _until(self, end: float, tasks: "asyncio.Future[Any]") -> None:
        while self.loop.time() < end:
            await asyncio.wait([tasks], timeout=min(1.0, end - self.loop.time()))
            if self.rules.violation is not None:
                raise self.rules.violation
            if tasks.done():
                tasks.result()

    def _start(self) -> None:
        rng = self.rng
        (self.repository / MODEL_NAME).mkdir(parents=True)
        shutil.copy(templates() / MODEL_NAME / "config.pbtxt", self.repository / MODEL_NAME)
        for _ in range(rng.randint(1, 3)):
            self._publish()
        self.tritons = [Triton(self.repository / MODEL_NAME, rng, self.loop.time) for _ in range(rng.randint(1, 2))]
        self.valkey_faults = ValkeyFaults(rng)
        self.valkey = Valkey(server=fakeredis.FakeServer())
        self.valkey.faults = self.valkey_faults
        for triton in self.tritons:
            triton.load_seconds = rng.choice([0.05, 0.5, 2.0])
            triton.unsound = self.rules.unsound
        for _ in range(rng.randint(1, 3)):
            self._start_server()

    def _on_unseen_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.rules.violate(f"nobody saw an error: {context.get('message')}: {context.get('exception')!r}")

    def wall_time(self) -> float:
        """Seconds since 1970, UTC."""
        return START_OF_TIME + self.loop.time()

    # Faults.

    async def _break_for_ever(self) -> None:
        faults = [
            self._crash_server,
            self._crash_server,
            self._crash_triton,
            self._hang_triton,
            self._refuse_loads,
            self._stop_valkey,
            self._lose_connections,
            self._turn_clock,
            self._litter,
        ]
        while True:
            await asyncio.sleep(self.rng.expovariate(1 / 8))
            await self.rng.choice(faults)()

    async def _crash_server(self) -> None:
        if not self.servers:
            return
        name = self.rng.choice(sorted(self.servers))
        self.rules.say(f"{name} crashes")
        self._crashed.append(self.servers.pop(name))
        self._crashed[-1].crash()
        await asyncio.sleep(self.rng.uniform(0.5, 4.0))
        self._start_server()

    def _start_server(self) -> None:
        name = f"server-{next(self._server_names)}"
        self.rules.say(f"{name} starts")
        self.servers[name] = Server(self, name, self.rng.choice(self.tritons))

    async def _crash_triton(self) -> None:
        triton = self.rng.choice(self.tritons)
        with self.rules.fault("a Triton crashes, and starts again empty"):
            triton.crash()
            await asyncio.sleep(self.rng.uniform(0.5, 5.0))
            triton.is_up = True

    async def _hang_triton(self) -> None:
        seconds = self.rng.uniform(1.0, 12.0)
        with self.rules.fault(f"a Triton hangs for {seconds:.1f} s"):
            self.rng.choice(self.tritons).hangs_until = self.loop.time() + seconds
            await asyncio.sleep(seconds)

    async def _refuse_loads(self) -> None:
        seconds = self.rng.uniform(1.0, 10.0)
        self.rules.latest_refusal = max(self.rules.latest_refusal, self.loop.time() + seconds)
        self.rules.say(f"a Triton refuses new versions for {seconds:.1f} s")
        self.rng.choice(self.tritons).refuses_loads_until = self.loop.time() + seconds

    async def _stop_valkey(self) -> None:
        with self.rules.fault("Valkey is down"):
            self.valkey_faults.is_up = False
            await asyncio.sleep(self.rng.uniform(0.5, 5.0))
            self.valkey_faults.is_up = True

    async def _lose_connections(self) -> None:
        with self.rules.fault("connections to Valkey are lost"):
            self.valkey_faults.lost_share = 0.2
            await asyncio.sleep(self.rng.uniform(1.0, 5.0))
            self.valkey_faults.lost_share = 0.0

    async def _turn_clock(self) -> None:
        if self.servers:
            server = self.servers[self.rng.choice(sorted(self.servers))]
            server.clock_error = self.rng.choice([-3600.0, 0.0, 0.0, 3600.0])
            self.rules.say(f"the clock of {server.name} is {server.clock_error:+.0f} s off")

    async def _litter(self) -> None:
        """Put an entry into the repository that is no release: it stops nothing but itself."""
        number = self.rng.randint(100, 200)
        entry = self.repository / MODEL_NAME / str(number)
        self.rules.say(f"entry {number} appears, which is no release")
        self.rules.damaged.add(number)
        kind = self.rng.choice(["empty", "dangling", "file"])
        if kind == "file":
            entry.write_text("not a directory")
        else:
            entry.mkdir(exist_ok=True)
        if kind == "dangling":
            (entry / "manifest.json").symlink_to("nowhere")

    def _mend(self) -> None:
        self.rules.say("all is mended")
        self.valkey_faults.is_up, self.valkey_faults.lost_share = True, 0.0
        for triton in self.tritons:
            triton.is_up, triton.hangs_until, triton.refuses_loads_until = True, 0.0, 0.0
        for server in self.servers.values():
            server.clock_error = 0.0
        if not self.servers:
            self._start_server()
        self.rules.all_is_mended()

    # Operators.

    def _publish(self) -> None:
        rules = self.rules
        number = max(rules.published, default=0) + 1
        if number > LARGEST_RELEASE:
            return
        kind = self.rng.choice(["good", "good", "good", "damaged", "unsound"]) if rules.published else "good"
        staging = self.repository / f".staging-{number}"
        shutil.copytree(templates() / MODEL_NAME / str(number), staging)
        if kind == "damaged":
            with (staging / self.rng.choice(["items.parquet", "manifest.json", "centroids.npy"])).open("ab") as file:
                file.write(b"!")
            rules.damaged.add(number)
        if kind == "unsound":
            rules.unsound.add(number)
        staging.rename(self.repository / MODEL_NAME / str(number))
        rules.published.append(number)
        rules.say(f"release {number} is published; it is {kind}")

    async def _operate_for_ever(self) -> None:
        commands = [self._push, self._set_canary, self._promote, self._roll_back, self._newest]
        weights = [2, 2, 1, 1, 1]
        while True:
            await asyncio.sleep(self.rng.expovariate(1 / 5))
            [command] = self.rng.choices(commands, weights)
            await command()

    async def _push(self) -> None:
        self._publish()

    async def _set_canary(self) -> None:
        releases = [number for number in self.rules.published if number not in self.rules.damaged]
        if len(releases) < 2:
            return
        stable, canary = self.rng.sample(releases, 2)
        guard = Guard(
            max_error_share=0.05,
            max_degraded_share=0.05,
            window_seconds=self.rng.choice([1.0, 3.0, 10.0]),
            min_answer_count=self.rng.choice([1, 10]),
        )
        named = Traffic(stable=stable, canary=canary, canary_share=self.rng.choice([0.1, 0.5, 0.9]), guard=guard)
        await self._command(f"traffic: {stable}, canary {canary}", lambda it: it.set(named, "operator", ""))

    async def _promote(self) -> None:
        number = self.rng.choice(self.rules.published)
        await self._command(f"traffic: {number}", lambda it: it.set(Traffic(stable=number), "operator", ""))

    async def _newest(self) -> None:
        await self._command("traffic: the newest", lambda it: it.set(Traffic(), "operator", ""))

    async def _roll_back(self) -> None:
        await self._command("roll-back", lambda it: it.roll_back("operator", ""))

    async def _command(self, text: str, command: Callable[[Promotion], Awaitable[object]]) -> None:
        servers = self._serving()
        if not servers:
            return
        server = self.rng.choice(servers)
        self.rules.say(f"{server.name} is told: {text}")
        outcome = await self._ask(server, command(server.promotion))
        if isinstance(outcome, Exception) and not isinstance(outcome, SegrecError):
            self.rules.violate(f"{server.name}: {text}: {outcome!r}")
        self.rules.say(f"{server.name}: {text}: {outcome if isinstance(outcome, SegrecError) else 'done'}")

    def _recording(self, change: Callable[..., Traffic]) -> Callable[..., Traffic]:
        def change_and_tell(
            repository: Path,
            alter: Callable[[Traffic], Traffic],
            what: str,
            who: str,
            reason: str = "",
            *more: Any,
            **named: Any,
        ) -> Traffic:
            before = read_traffic(repository)
            after = change(repository, alter, what, who, reason, *more, **named)
            self.rules.traffic_changed(before, after, what, who, reason)
            return after

        return change_and_tell

    def _read_release(self, path: Path, *arguments: Any) -> Release:
        number = int(path.name)
        if number in self.rules.damaged:
            return read_release(path, *arguments)
        return good_release(number)

    # Callers.

    def _serving(self) -> list[Server]:
        return [server for server in self.servers.values() if server.is_serving]

    async def _ask(self, server: Server, call: Awaitable[Any]) -> Any:
        """The answer or the error of a call to a server, which may crash meanwhile."""
        task = server.run(_settled(call))
        await asyncio.wait([task])
        return None if task.cancelled() else task.result()

    async def _call_for_ever(self, per_second: float) -> None:
        while True:
            await asyncio.sleep(self.rng.expovariate(per_second))
            servers = self._serving()
            if not servers:
                continue
            server, user = self.rng.choice(servers), self.rng.choice(USERS)
            if self.rng.random() < 0.3:
                await self._record(user)
            else:
                await self._segment(server, user)

    async def _record(self, user: str) -> None:
        """Send an event until it is acknowledged, each time to any server."""
        number = next(self._event_numbers)
        stamp = int(self.wall_time() * 1000) - 1_000_000 + number
        event = Event(item_id(self.rng.randint(1, 50)), "view", float(number % 5), stamp)
        record = Record(event)
        self.rules.records[user].append(record)
        message = common_pb2.Event(item_id=event.item_id, action=event.action, value=event.value)
        message.timestamp.FromMilliseconds(event.timestamp)
        request = event_service_pb2.RecordEventsRequest()
        request.events.add(user_id=user, event=message)
        while not record.is_acknowledged:
            servers = self._serving()
            if servers:
                server = self.rng.choice(servers)
                since = self.loop.time()
                answer = await self._ask(server, server.events.RecordEvents(request, Context()))  # type: ignore[arg-type]
                if isinstance(answer, event_service_pb2.RecordEventsResponse) and not answer.refused:
                    record.acknowledged[0] = self.loop.time()
                    return
                if answer is not None:
                    self.rules.check_refusal(server, since, answer)
            await asyncio.sleep(0.1)

    async def _segment(self, server: Server, user: str) -> None:
        request = segrec_service_pb2.SegmentRequest(user_id=user)
        since = self.loop.time()
        answer = await self._ask(server, server.segrec.Segment(request, Context()))  # type: ignore[arg-type]
        if isinstance(answer, bytes):
            answer = segrec_service_pb2.SegmentResponse.FromString(answer)
        if answer is not None:
            self.rules.check_answer(server, user, since, answer)

    # The end.

    async def _check_end(self) -> None:
        servers = list(self.servers.values())
        self.rules.check_end(servers, read_traffic(self.repository))
        for server in servers:
            for user in USERS:
                await self._segment(server, user)
        for user in USERS:
            self.rules.check_history(user, await servers[0].store.get(user))
        if self.rules.violation is not None:
            raise self.rules.violation


async def _settled(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except Exception as error:
        return error
