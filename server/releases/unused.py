"""Finds the releases of a shared Triton that nobody needs any more."""

from collections.abc import Callable, Collection, Mapping
from time import monotonic

UNUSED_SECONDS = 600.0
"""A release is unloaded when this server has not wanted it, and nobody has used it, for this long. Other servers may
want a release for reasons that only they know, such as a pinned stream."""


class UnusedReleases:
    """Remembers since when each loaded release has been unwanted here and unused by all servers."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """`clock` gives monotonic seconds."""
        self._clock = clock
        self._unused_since: dict[int, tuple[int, float]] = {}

    def find(self, inference_counts: Mapping[int, int], wanted: Collection[int]) -> set[int]:
        """The releases to unload. `inference_counts` are those of all loaded releases; call this from time to time."""
        now = self._clock()
        before, self._unused_since = self._unused_since, {}
        for release, count in inference_counts.items():
            if release not in wanted:
                count_before, since = before.get(release, (-1, now))
                self._unused_since[release] = (count, since if count == count_before else now)
        return {release for release, (_, since) in self._unused_since.items() if now - since >= UNUSED_SECONDS}
