"""A breaker: while a part of the server hangs, callers do not wait for it; one call from time to time tries it."""

import logging
from collections.abc import Callable
from time import monotonic

log = logging.getLogger(__name__)

SLOW_FAILURES = 3
"""Slow failures in a row that open a breaker."""
SLOW_SECONDS = 0.25
"""A failure counts as slow from this time on. A quick one costs its caller nothing, and the next call may succeed."""
TRIAL_SECONDS = 0.5
"""While a breaker is open, one call in this time may try."""
LOG_SECONDS = 10.0
"""Shortest time between two warnings of one breaker."""


class Breaker:
    """Counts the slow failures of one part. It opens after `SLOW_FAILURES` in a row and closes at the first success.

    The log has one warning when a part begins to fail and one line when it answers again. Not thread-safe: used from
    the event loop only.
    """

    def __init__(self, part: str, clock: Callable[[], float] = monotonic) -> None:
        """`part` is the name for the log, such as "the history store"; `clock` gives seconds."""
        self._part = part
        self._clock = clock
        self._slow_failures = 0
        self._failed_calls = 0
        self._failing_since: float | None = None
        self._next_trial = 0.0
        self._next_warning = -float("inf")
        self._has_warned = False
        self.is_whole_part_away = False
        """Whether the latest failure was of the whole part, not of what the call asked for."""

    @property
    def is_open(self) -> bool:
        """Whether the part is known not to answer."""
        return self._slow_failures >= SLOW_FAILURES

    def allows_call(self) -> bool:
        """Whether to ask the part: always while closed; while open, True once every `TRIAL_SECONDS`."""
        if not self.is_open:
            return True
        now = self._clock()
        if now < self._next_trial:
            return False
        self._next_trial = now + TRIAL_SECONDS
        return True

    def succeeded(self) -> None:
        """Record an answer of the part."""
        if self._failing_since is None:
            return
        if self._has_warned:
            seconds = self._clock() - self._failing_since
            log.info("%s answers again after %.1f s; %d calls failed", self._part, seconds, self._failed_calls)
        self._slow_failures = self._failed_calls = 0
        self._failing_since = None

    def failed(self, problem: str, seconds: float, *, is_whole_part_away: bool = True) -> None:
        """Record that a call failed after `seconds`; `problem` is for the log."""
        now = self._clock()
        self.is_whole_part_away = is_whole_part_away
        self._failed_calls += 1
        if self._failing_since is None:
            self._failing_since = now
            self._has_warned = now >= self._next_warning
            if self._has_warned:
                self._next_warning = now + LOG_SECONDS
                log.warning("%s does not answer: %s", self._part, problem)
        if seconds >= SLOW_SECONDS:
            self._slow_failures += 1
            if self._slow_failures == SLOW_FAILURES:
                self._next_trial = now + TRIAL_SECONDS
