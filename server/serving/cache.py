"""A cache of user embeddings, valid for one revision of a history."""

from collections import OrderedDict
from typing import Any

from server.core.history import History
from server.serving.answer import Answer, Embedded, PreparedSegment

_Entry = tuple[int, int, tuple[Any, ...], PreparedSegment | None]
"""Revision and origin of the history, the fields of `Embedded`, and the prepared answer.

The garbage collector stops to visit plain tuples of numbers, texts and arrays; it visits named tuples for ever, which
takes 60 ms at 200,000 entries.
"""


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
        entry = self._current(release, user_id, history)
        return None if entry is None else Embedded(*entry[2])

    def answer(self, release: int, user_id: str, history: History) -> Answer | None:
        """Like `get`, as an answer, with what `prepare` was given."""
        entry = self._current(release, user_id, history)
        return None if entry is None else Answer(Embedded(*entry[2]), history, prepared=entry[3])

    def _current(self, release: int, user_id: str, history: History) -> _Entry | None:
        key = (release, user_id)
        entry = self._entries.get(key)
        if entry is None:
            return None
        revision, origin, _, _ = entry
        if origin != history.origin:  # erased since
            del self._entries[key]
            return None
        if revision != history.revision:
            return None
        self._entries.move_to_end(key)
        return entry

    def latest(self, release: int, user_id: str, history: History) -> Embedded | None:
        """The embedding of this or an older revision of the history; None if nothing is cached."""
        entry = self._entries.get((release, user_id))
        return Embedded(*entry[2]) if entry is not None and entry[1] == history.origin else None

    def put(self, release: int, user_id: str, history: History, embedded: Embedded, erasure_count: int) -> None:
        """Add an embedding; a full cache drops the least recently used one.

        `erasure_count` is the value of `self.erasure_count` before the history was read. If a user was erased since
        then, this could be the erased user, and the embedding is not cached.
        """
        if erasure_count != self.erasure_count:
            return
        self._entries[(release, user_id)] = (history.revision, history.origin, tuple(embedded), None)
        self._entries.move_to_end((release, user_id))
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def prepare(self, release: int, user_id: str, history: History, prepared: PreparedSegment) -> None:
        """Keep the prepared answer with the embedding of this revision of the history, if that is cached."""
        entry = self._entries.get((release, user_id))
        if entry is not None and entry[:2] == (history.revision, history.origin):
            self._entries[(release, user_id)] = (*entry[:3], prepared)

    def forget_user(self, user_id: str, releases: list[int]) -> None:
        """Drop the embeddings of a user, and reject embeddings that are still being computed; see `put`."""
        self.erasure_count += 1
        for release in releases:
            self._entries.pop((release, user_id), None)

    def forget_release(self, release: int) -> None:
        for key in [key for key in self._entries if key[0] == release]:
            del self._entries[key]
