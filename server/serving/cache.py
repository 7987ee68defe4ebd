"""Embeddings of users whose histories have not changed since."""

from collections import OrderedDict

from server.serving.answer import Embedded


class EmbeddingCache:
    """Least recently used embeddings by release and user, each with the revision of the history it was made from.

    Not thread-safe: used from the event loop only.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.erasures = 0
        """How often a user was forgotten; see `put`."""
        self._entries: OrderedDict[tuple[int, str], tuple[int, Embedded]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, release: int, user_id: str, revision: int) -> Embedded | None:
        """The embedding of exactly this revision."""
        entry = self._entries.get((release, user_id))
        if entry is None or entry[0] != revision:
            return None
        self._entries.move_to_end((release, user_id))
        return entry[1]

    def latest(self, release: int, user_id: str) -> tuple[int, Embedded] | None:
        """The embedding of whatever revision there is, with that revision."""
        return self._entries.get((release, user_id))

    def put(self, release: int, user_id: str, revision: int, embedded: Embedded, erasures: int) -> None:
        """Remember an embedding, forgetting the least recently used one when full.

        `erasures` is what `self.erasures` was before the history was read: an embedding made while a user was being
        forgotten could be of that very user and is not kept.
        """
        if erasures != self.erasures:
            return
        self._entries[(release, user_id)] = (revision, embedded)
        self._entries.move_to_end((release, user_id))
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def forget_user(self, user_id: str, releases: list[int]) -> None:
        """Drop all that is kept of a user."""
        self.erasures += 1
        for release in releases:
            self._entries.pop((release, user_id), None)

    def forget_release(self, release: int) -> None:
        """Drop all that a release gave."""
        for key in [key for key in self._entries if key[0] == release]:
            del self._entries[key]
