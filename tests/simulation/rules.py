"""The four rules that hold in every simulated history.

1. Each answer is of one release, and of a history that the user had during the call: all acknowledged events are in it.
2. What the traffic names answers, unless it cannot: without a fault no call fails, none is degraded, and after the end
   of all faults each server answers from what is named.
3. The guard takes no sound canary out.
4. An acknowledged event is never lost.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from server.core.history import Event, History
from server.core.repository.traffic import Traffic
from tests.simulation.releases import placed
from tests.simulation.servers import Server

FORGIVEN_SECONDS = 15.0
"""How long after a fault answers may still be degraded."""


class Violation(AssertionError):
    """A rule was broken; the text says which, and when."""


@dataclass(frozen=True)
class Record:
    """An event that a caller sent, and from when on it is acknowledged (infinite: not yet)."""

    event: Event
    acknowledged: list[float] = field(default_factory=lambda: [float("inf")])

    @property
    def is_acknowledged(self) -> bool:
        return self.acknowledged[0] < float("inf")


class Rules:
    """What has happened so far, as far as the rules ask; `violation` is the first rule that was broken."""

    def __init__(self, clock: Callable[[], float], users: Iterable[str]) -> None:
        self._clock = clock
        self.trace: list[str] = []
        self.violation: Violation | None = None
        self.traffics: list[tuple[float, Traffic]] = [(0.0, Traffic())]
        self.records: dict[str, list[Record]] = {user: [] for user in users}
        self.published: list[int] = []
        self.damaged: set[int] = set()
        """Releases whose files are damaged; they are not loaded."""
        self.unsound: set[int] = set()
        """Releases that load, and fail some calls; a guard may take them out."""
        self.latest_refusal = 0.0
        """Until then some Triton refuses to load new versions."""
        self._latest_fault = 0.0
        self._faults_in_progress = 0

    def say(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self._clock():10.3f} {text}")

    def violate(self, text: str) -> None:
        """Note that a rule is broken."""
        self.say(f"VIOLATION: {text}")
        if self.violation is None:
            self.violation = Violation(f"at {self._clock():.3f} s: {text}")

    @contextmanager
    def fault(self, text: str) -> Iterator[None]:
        """A fault until the block ends; for some time after it answers may be degraded."""
        self.say(text)
        self._faults_in_progress += 1
        try:
            yield
        finally:
            self._faults_in_progress -= 1
            self._latest_fault = self._clock()

    def all_is_mended(self) -> None:
        self._faults_in_progress, self._latest_fault = 0, self._clock()

    def is_forgiven(self, since: float) -> bool:
        """Whether a fault explains what happened from `since` to now."""
        return self._faults_in_progress > 0 or self._latest_fault >= since - FORGIVEN_SECONDS

    def traffic_changed(self, before: Traffic, after: Traffic, what: str, who: str, reason: str) -> None:
        self.traffics.append((self._clock(), after))
        self.say(f"traffic by {who}: {after.stable}, canary {after.canary} {after.canary_share:.0%}: {reason}")
        if what == "guard" and before.canary not in self.unsound:
            self.violate(f"rule 3: {who} took out release {before.canary}, which is sound: {reason}")

    def check_refusal(self, server: Server, since: float, answer: Any) -> None:
        """Check an event that was refused."""
        if server.clock_error == 0 and not self.is_forgiven(since):
            self.violate(f"rule 2: {server.name} refused an event without a fault: {answer}")

    def check_answer(self, server: Server, user: str, since: float, answer: Any) -> None:
        """Check what a call of Segment that began at `since` has given: an answer or an error."""
        if isinstance(answer, Exception):
            if not self.is_forgiven(since):
                self.violate(f"rule 2: {server.name} failed without a fault: {answer!r}")
            return
        number, assignment = answer.info.release, answer.assignment
        if answer.info.degraded:
            if not self.is_forgiven(since) and number not in self.unsound:
                self.violate(f"rule 2: {server.name}: an answer of release {number} was degraded without a fault")
            return
        if assignment.label and not assignment.label.endswith(f"(release {number})"):
            self.violate(f"rule 1: an answer of release {number} names the segment {assignment.label!r}")
        given = (assignment.segment_id, assignment.distance)
        right = [placed(number, events) for events in self._possible_histories(user, since)]
        if not any(given[0] == segment and abs(given[1] - distance) < 1e-3 for segment, distance in right):
            self.violate(
                f"rule 1: {server.name} answers {user} with {given} by release {number}; right is one of {right}"
            )
        applied = since - server.longest_change_seconds
        is_late = self.is_forgiven(since) or self.latest_refusal > applied or server.started > applied
        if not is_late and number not in self._named(user, applied):
            self.violate(f"rule 2: {server.name} answers {user} from release {number}, which is not named")

    def check_end(self, servers: Iterable[Server], traffic: Traffic) -> None:
        """Check that each server follows the traffic, a while after all faults."""
        good = [number for number in self.published if number not in self.damaged]
        stable = traffic.stable or max(good)
        for server in servers:
            active, canary = server.releases.active, server.releases.canary
            if stable in good and stable not in self.unsound and (active is None or active.number != stable):
                self.violate(f"rule 2: {server.name} answers from {active and active.number}; named is {stable}")
            is_sound = traffic.canary and traffic.canary not in self.unsound
            if is_sound and (canary is None or canary.number != traffic.canary):
                self.violate(f"rule 2: {server.name} gives the canary {traffic.canary} no traffic")

    def check_history(self, user: str, history: History) -> None:
        """Check the history that is stored at the end."""
        kept = set(history.timestamps.tolist())
        acknowledged = [record.event for record in self.records[user] if record.is_acknowledged]
        lost = {event.item_id for event in acknowledged if event.timestamp not in kept}
        if lost:
            self.violate(f"rule 4: events of {user} are lost: {sorted(lost)}")

    def _possible_histories(self, user: str, since: float) -> list[tuple[Event, ...]]:
        """The histories, oldest event first, that the user may have had between `since` and now."""
        certain = [record.event for record in self.records[user] if record.acknowledged[0] <= since]
        others = [record.event for record in self.records[user] if record.acknowledged[0] > since]
        return [
            tuple(sorted([*certain, *some], key=lambda event: event.timestamp))
            for size in range(len(others) + 1)
            for some in combinations(others, size)
        ]

    def _named(self, user: str, since: float) -> set[int]:
        """The releases that the traffic gave to a user at some time from `since` on.

        While the traffic changes, stable releases answer canary users too, until the canary is loaded.
        """
        start = max(place for place, (when, _) in enumerate(self.traffics) if when <= since)
        traffics = [traffic for _, traffic in self.traffics[start:]]
        named = {traffic.stable for traffic in traffics} if len(traffics) > 1 else set()
        for traffic in traffics:
            named.add(traffic.canary if traffic.is_canary_user(user) else traffic.stable)
            may_fail = self.unsound | self.damaged | {0}
            if traffic.stable in may_fail or traffic.canary in self.unsound:
                return set(self.published)
        return named
