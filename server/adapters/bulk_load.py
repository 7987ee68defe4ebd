"""Reads a prepared log of any size as histories, for the stores' bulk load.

The log is read in chunks of rows by Polars' streaming engine. A chunk ends where a user ends, so in a log sorted by
user, as `segrec-train prepare` writes it, each user comes once and whole. In any other order a user comes in pieces,
which the stores merge: slower, with the same result.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.adapters.ports import LoadProgress
from server.core.errors import SetupError
from server.core.history import ID_MAX_BYTES, History, event_keys, text_hash

log = logging.getLogger(__name__)

CHUNK_ROWS = 100_000
"""Events that are written in one transaction: much fewer wait for the disk, much more make other writers wait."""

_TEXTS = ("user_id", "item_id", "action")
_SCHEMA = {**dict.fromkeys(_TEXTS, pl.String()), "value": pl.Float64(), "timestamp": pl.Int64()}
_FOOTER_TAIL_BYTES = 8  # length of the footer (uint32) and "PAR1"

_HASHES_KEPT = 1 << 18
_Hash = Callable[[str], int]

Users = Sequence[tuple[str, History]]
"""User ids and what the log holds of each, revision 0."""


@dataclass(frozen=True)
class BootstrapLog:
    """A Parquet log of events."""

    path: Path
    mark: str
    """What a store notes when it has loaded this log; another for another log or history limit."""
    user_count: int
    history_limit: int

    @classmethod
    def open(cls, path: Path, history_limit: int) -> "BootstrapLog":
        """Check the log's columns and count its users. Raises `SetupError` when it cannot be read."""
        try:
            schema = pl.read_parquet_schema(path)
            missing = [name for name in _SCHEMA if name not in schema]
            if missing:
                raise SetupError(
                    f"the log {path} has no column {', '.join(missing)}; give one that `segrec-train prepare` wrote"
                )
            users = pl.scan_parquet(path).select(pl.col("user_id").n_unique()).collect(engine="streaming").item()
            return cls(path, f"{_fingerprint(path)}-{history_limit}", users, history_limit)
        except (OSError, pl.exceptions.PolarsError) as error:
            reason = str(error).strip().split("\n")[0]
            raise SetupError(
                f"the log {path} cannot be read: {reason}; give one that `segrec-train prepare` wrote"
            ) from error

    def chunks(self) -> Iterator[Users]:
        """The log's histories in its order, about `CHUNK_ROWS` events at a time."""
        columns = [pl.col(name).cast(dtype) for name, dtype in _SCHEMA.items()]
        frame = pl.scan_parquet(self.path).select(columns).with_columns(pl.col("value").fill_null(float("nan")))
        held, dropped, hash_of = pl.DataFrame(schema=_SCHEMA), 0, lru_cache(_HASHES_KEPT)(text_hash)
        for batch in frame.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True, lazy=True, engine="streaming"):
            usable = batch.filter(_usable())
            dropped += len(batch) - len(usable)
            held = pl.concat([held, usable])
            if len(held) < CHUNK_ROWS:
                continue
            complete = _before_last_user(held)
            yield from self._split(held[:complete], hash_of)
            held = held[complete:]
        yield from self._split(held, hash_of)
        if dropped:
            log.warning(
                "%d events of %s have ids or times that the API would refuse; they were left out", dropped, self.path
            )

    def _split(self, events: pl.DataFrame, hash_of: _Hash) -> Iterator[Users]:
        if not events.is_empty():
            yield _histories(events, self.history_limit, hash_of)


async def load(log_: BootstrapLog, write: Callable[[Users], Awaitable[None]], on_progress: LoadProgress) -> int:
    """Hand every chunk of the log to `write`, which merges it durably; returns the users loaded.

    Progress counts users. The reading is done in a thread.
    """
    done, chunks = 0, log_.chunks()
    on_progress(0, log_.user_count)
    while users := await asyncio.to_thread(next, chunks, None):
        await write(users)
        done += len(users)
        on_progress(min(done, log_.user_count), log_.user_count)
    return log_.user_count


def _fingerprint(path: Path) -> str:
    """Hash of the file's size and Parquet footer, which holds size, place and extremes of every column chunk."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _FOOTER_TAIL_BYTES))
        footer_bytes = int.from_bytes(file.read(4), "little")
        file.seek(max(0, size - _FOOTER_TAIL_BYTES - footer_bytes))
        return hashlib.sha256(b"%d\0" % size + file.read()).hexdigest()


def _usable() -> pl.Expr:
    """Ids that fit a store's key and row; `prepare` drops others, logs from elsewhere may hold them."""
    fits = [pl.col(name).str.len_bytes().is_between(1, ID_MAX_BYTES) for name in _TEXTS]
    whole = [~pl.col(name).str.contains("\0", literal=True) for name in _TEXTS]
    return pl.all_horizontal(*fits, *whole, pl.col("timestamp").is_not_null()).fill_null(value=False)


def _before_last_user(events: pl.DataFrame) -> int:
    """Rows before those of the last user; all rows where there is but one user."""
    others = (events["user_id"] != events["user_id"][-1]).arg_true()
    return int(others[-1]) + 1 if len(others) else len(events)


def _histories(events: pl.DataFrame, limit: int, hash_of: _Hash) -> Users:
    """Each user's newest `limit` events, users in id order."""
    events = events.sort("user_id", "timestamp", maintain_order=True)
    runs = events["user_id"].rle().struct.unnest()
    columns = _columns(events, np.repeat(np.arange(len(runs), dtype=np.uint64), runs["len"].to_numpy()), hash_of)
    item_ids, actions = events["item_id"].to_list(), events["action"].to_list()
    users: list[tuple[str, History]] = []
    end = 0
    for count, user_id in runs.iter_rows():
        end += count
        part = slice(end - min(count, limit), end)
        users.append((user_id, History.of(item_ids[part], actions[part], [column[part] for column in columns])))
    return users


def _columns(events: pl.DataFrame, user_index: NDArray[np.uint64], hash_of: _Hash) -> tuple[NDArray[np.generic], ...]:
    """The columns of `History.of`, (n,) each; keys are distinct within a user even where the log holds equal events."""
    item_hashes, action_hashes = _hashes(events["item_id"], hash_of), _hashes(events["action"], hash_of)
    values, timestamps = events["value"].to_numpy(), events["timestamp"].to_numpy()
    repeats = np.zeros(len(events), np.uint64)
    keys = event_keys(item_hashes, action_hashes, values, timestamps, repeats)
    by_user = pl.DataFrame({"user": user_index, "key": keys})
    if not by_user.is_unique().all():
        repeats = by_user.select(pl.int_range(pl.len(), dtype=pl.UInt64).over("user", "key")).to_series().to_numpy()
        keys = event_keys(item_hashes, action_hashes, values, timestamps, repeats)
    return timestamps, values, item_hashes, action_hashes, keys


def _hashes(texts: pl.Series, hash_of: _Hash) -> NDArray[np.uint64]:
    """`text_hash` of each text, (n,), computed once for each distinct one."""
    distinct = texts.unique()
    hashes = pl.Series([hash_of(text) for text in distinct.to_list()], dtype=pl.UInt64)
    table = pl.DataFrame({"text": distinct, "hash": hashes})
    return texts.to_frame("text").join(table, on="text", how="left", maintain_order="left")["hash"].to_numpy()
