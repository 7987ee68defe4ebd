"""A cache of user embeddings, valid for one revision of a history."""

from collections import OrderedDict
from typing import NamedTuple

from server.core.history import History
from server.serving.answer import Embedded


class _Entry(NamedTuple):
    revision: int
    origin: int
    embedded: Embedded


class EmbeddingCache:
    """LRU cache: (release, user id) → embedding, with the revision and the origin of the history that was embedded.

    An erased user who comes back has a history of another origin, also where another server erased the user: what was
    cached before is dropped.

    Not thread-safe: used from the event loop only.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.erasure_count = 0
        """Number of calls to `forget_user`; see `put`."""
        self._entries: OrderedDict[tuple[int, str], _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, release: int, user_id: str, history: History) -> Embedded | None:
        """The embedding of this revision of the history; None if another revision or nothing is cached."""
        entry = self._entries.get((release, user_id))
        if entry is None:
            return None
        if entry.origin != history.origin:  # erased since
            del self._entries[(release, user_id)]
            return None
        if entry.revision != history.revision:
            return None
        self._entries.move_to_end((release, user_id))
        return entry.embedded

    def latest(self, release: int, user_id: str, history: History) -> Embedded | None:
        """The embedding of this or an older revision of the history; None if nothing is cached."""
        entry = self._entries.get((release, user_id))
        return entry.embedded if entry is not None and entry.origin == history.origin else None

    def put(self, release: int, user_id: str, history: History, embedded: Embedded, erasure_count: int) -> None:
        """Add an embedding; a full cache drops the least recently used one.

        `erasure_count` is the value of `self.erasure_count` before the history was read. If a user was erased since
        then, this could be the erased user, and the embedding is not cached.
        """
        if erasure_count != self.erasure_count:
            return
        self._entries[(release, user_id)] = _Entry(history.revision, history.origin, embedded)
        self._entries.move_to_end((release, user_id))
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def forget_user(self, user_id: str, releases: list[int]) -> None:
        """Drop the embeddings of a user, and reject embeddings that are still being computed; see `put`."""
        self.erasure_count += 1
        for release in releases:
            self._entries.pop((release, user_id), None)

    def forget_release(self, release: int) -> None:
        for key in [key for key in self._entries if key[0] == release]:
            del self._entries[key]
