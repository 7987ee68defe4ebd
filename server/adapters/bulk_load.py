"""Reads a prepared log of any size as histories, for the bulk load of the stores.

Polars' streaming engine reads the log in chunks of rows. A chunk ends at the end of a user. In a log sorted by user, as
`segrec-train prepare` writes it, each user therefore appears once and whole. In another order a user appears in several
pieces, which the stores merge: slower, with the same result.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.adapters.ports import LoadProgress
from server.core.errors import SetupError
from server.core.history import ID_MAX_BYTES, History, content_keys, repeated_keys, text_hash
from server.core.repository.layout import EVENTS_MARK, WITH_CLOCK

log = logging.getLogger(__name__)

CHUNK_ROWS = 100_000
"""Events in one transaction: far fewer waste time on disk syncs, far more delay other writers."""

_TEXTS = ("user_id", "item_id", "action")
_SCHEMA = {**dict.fromkeys(_TEXTS, pl.String()), "value": pl.Float64(), "timestamp": pl.Int64()}

_HASHES_KEPT = 1 << 18
_LONGEST_AHEAD_SECONDS = 86_400
_Hash = Callable[[str], int]

Users = Sequence[tuple[str, History]]
"""(user id, history from the log with revision 0) pairs."""


@dataclass(frozen=True)
class BootstrapLog:
    """A Parquet log of events, checked and ready to load."""

    path: Path
    mark: str
    """Identifies the content of this log and the history limit; a store keeps the mark of each loaded log."""
    history_limit: int

    @classmethod
    def open(cls, path: Path, history_limit: int) -> "BootstrapLog":
        """The log at `path`. Raises `SetupError` when it cannot be read."""
        with _readable(path):
            return cls(path, f"{_content_hash(path)}-{history_limit}", history_limit)

    def check(self, now_seconds: float) -> int:
        """The number of users; for a log that is not loaded yet.

        Raises `SetupError` for a log that neither `segrec-train prepare` nor an export wrote, and for times before 1970
        or more than a day after `now_seconds`, which would stand before or after all events to come.
        """
        with _readable(self.path):
            schema = pl.read_parquet_schema(self.path)
            clock = pl.read_parquet_metadata(self.path).get(EVENTS_MARK)
            if clock is None or any(schema.get(name) != dtype for name, dtype in _SCHEMA.items()):
                raise SetupError(
                    f"the log {self.path} was not written by `segrec-train prepare` or `segrec-store export-events` of "
                    "this version, so its times and ids may mean something else; give the events.parquet of a run, "
                    "prepared again"
                )
            time = pl.col("timestamp")
            columns = time.min().alias("first"), time.max().alias("last"), pl.col("user_id").n_unique().alias("users")
            row = pl.scan_parquet(self.path, glob=False).select(columns).collect(engine="streaming").row(0, named=True)
        latest = (now_seconds + _LONGEST_AHEAD_SECONDS) * 1000
        if clock == WITH_CLOCK and row["users"] and not 0 <= row["first"] <= row["last"] <= latest:
            raise SetupError(
                f"the log {self.path} has events before 1970 or more than a day in the future; check the clock of this "
                "machine, or run `segrec-train prepare` again, which leaves such events out"
            )
        return int(row["users"])

    def chunks(self) -> Iterator[Users]:
        """The histories of the log, in its order, about `CHUNK_ROWS` events at a time."""
        columns = [pl.col(name).cast(dtype) for name, dtype in _SCHEMA.items()]
        frame = pl.scan_parquet(self.path, glob=False).select(columns)
        frame = frame.with_columns(pl.col("value").fill_null(float("nan")))
        buffer, dropped, hash_of = pl.DataFrame(schema=_SCHEMA), 0, lru_cache(_HASHES_KEPT)(text_hash)
        for batch in frame.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True, lazy=True, engine="streaming"):
            valid = batch.filter(_is_valid())
            dropped += len(batch) - len(valid)
            buffer = pl.concat([buffer, valid])
            if len(buffer) < CHUNK_ROWS:
                continue
            end = _before_last_user(buffer)
            yield from self._as_users(buffer[:end], hash_of)
            buffer = buffer[end:]
        yield from self._as_users(buffer, hash_of)
        if dropped:
            log.warning("%d events of %s were left out: the API accepts no such ids or timestamps", dropped, self.path)

    def _as_users(self, events: pl.DataFrame, hash_of: _Hash) -> Iterator[Users]:
        if not events.is_empty():
            yield _histories(events, self.history_limit, hash_of)


async def load(
    event_log: BootstrapLog, now_seconds: float, write: Callable[[Users], Awaitable[None]], on_progress: LoadProgress
) -> int:
    """Check the log, then pass each chunk to `write`, which stores it durably; returns the number of users.

    Reads in a thread. Progress counts users. Raises `SetupError` as `BootstrapLog.check` does.
    """
    user_count = await asyncio.to_thread(event_log.check, now_seconds)
    done, chunks = 0, event_log.chunks()
    on_progress(0, user_count)
    while users := await asyncio.to_thread(next, chunks, None):
        await write(users)
        done += len(users)
        on_progress(min(done, user_count), user_count)
    return user_count


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors of reading the log into `SetupError`."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise SetupError(
            f"the log {path} cannot be read: {reason}; give the events.parquet that `segrec-train prepare` wrote"
        ) from error


def _content_hash(path: Path) -> str:
    """BLAKE2b of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _is_valid() -> pl.Expr:
    """Whether the ids of an event fit the keys and rows of a store. Only `prepare` ensures that."""
    fits = [pl.col(name).str.len_bytes().is_between(1, ID_MAX_BYTES) for name in _TEXTS]
    whole = [~pl.col(name).str.contains("\0", literal=True) for name in _TEXTS]
    return pl.all_horizontal(*fits, *whole, pl.col("timestamp").is_not_null()).fill_null(value=False)


def _before_last_user(events: pl.DataFrame) -> int:
    """Number of rows before the last user; all rows if there is only one user."""
    others = (events["user_id"] != events["user_id"][-1]).arg_true()
    return int(others[-1]) + 1 if len(others) else len(events)


def _histories(events: pl.DataFrame, limit: int, hash_of: _Hash) -> Users:
    """The newest `limit` events of each user, in the order of the user ids."""
    events = events.sort("user_id", "timestamp", maintain_order=True)
    runs = events["user_id"].rle().struct.unnest()
    columns = _columns(events, np.repeat(np.arange(len(runs), dtype=np.uint64), runs["len"].to_numpy()), hash_of)
    item_ids, actions = events["item_id"].to_list(), events["action"].to_list()
    users: list[tuple[str, History]] = []
    end = 0
    for count, user_id in runs.iter_rows():
        end += count
        part = slice(end - count, end)
        whole = History.of(item_ids[part], actions[part], [column[part] for column in columns])
        users.append((user_id, whole.shortened(limit)))
    return users


def _columns(events: pl.DataFrame, user_index: NDArray[np.uint64], hash_of: _Hash) -> tuple[NDArray[np.generic], ...]:
    """The columns of `History.of`, (n,) each. Equal events of a user get different keys, so all of them are kept."""
    item_hashes, action_hashes = _hashes(events["item_id"], hash_of), _hashes(events["action"], hash_of)
    values, timestamps = events["value"].to_numpy(), events["timestamp"].to_numpy()
    keys = content_keys(item_hashes, action_hashes, timestamps)
    by_user = pl.DataFrame({"user": user_index, "key": keys})
    if not by_user.is_unique().all():
        repeats = by_user.select(pl.int_range(pl.len(), dtype=pl.UInt64).over("user", "key")).to_series().to_numpy()
        keys = repeated_keys(keys, repeats)
    return timestamps, values, item_hashes, action_hashes, keys


def _hashes(texts: pl.Series, hash_of: _Hash) -> NDArray[np.uint64]:
    """`text_hash` of each text, (n,), computed once per distinct text."""
    distinct = texts.unique()
    hashes = pl.Series([hash_of(text) for text in distinct.to_list()], dtype=pl.UInt64)
    table = pl.DataFrame({"text": distinct, "hash": hashes})
    return texts.to_frame("text").join(table, on="text", how="left", maintain_order="left")["hash"].to_numpy()
