"""Events for tests of history stores, logs of them, and rows that are damaged behind a store's back."""

from pathlib import Path

import polars as pl

from server.adapters.lmdb_store import LmdbStore
from server.adapters.lmdb_writer import Operation
from server.adapters.ports import HistoryStore
from server.adapters.valkey_store import ValkeyStore
from server.core.history import Event, History
from server.core.repository.layout import EVENTS_MARK, WITH_CLOCK
from tests.support.memory_store import MemoryStore

LIMIT = 5


def view(number: int, item: str = "") -> Event:
    """Event `number`, at second `number`."""
    return Event(item or f"item-{number}", "view", float(number), number * 1000)


def write_log(path: Path, rows: list[tuple[str, Event]], clock: str = WITH_CLOCK) -> Path:
    columns = ("item_id", "action", "value", "timestamp")
    data = {name: [getattr(event, name) for _, event in rows] for name in columns}
    events = pl.DataFrame({"user_id": [user_id for user_id, _ in rows], **data})
    events.write_parquet(path, metadata={EVENTS_MARK: clock})
    return path


def ignore(done: int, total: int) -> None:
    pass


async def whole(store: HistoryStore, user_ids: list[str]) -> list[History]:
    """Many histories, none of them damaged."""
    histories = await store.get_many(user_ids)
    assert None not in histories
    return [history for history in histories if history is not None]


def contents(history: History) -> tuple[list[str], list[str], list[float], list[int]]:
    return list(history.item_ids), list(history.actions), history.values.tolist(), history.timestamps.tolist()


async def damage(store: HistoryStore, user_id: str, place: str) -> None:
    """Change one byte of a stored row (or all of it) behind the store's back."""
    row = bytearray((await store.get(user_id)).row)
    if place == "whole":
        row[:] = b"\x02 not a history, though as long as its header"
    else:
        row[{"text": -1, "value": 48, "count": 5, "revision": 8}[place]] ^= 0x80
    changed = bytes(row)
    if isinstance(store, MemoryStore):
        store.rows[user_id] = changed
    elif isinstance(store, LmdbStore):
        await write(store, lambda transaction, _: transaction.put(user_id.encode(), changed, db=store._histories))
    elif isinstance(store, ValkeyStore):
        await store._client.set(f"segrec:h:{user_id}", changed)


async def write(store: LmdbStore, operation: Operation[object]) -> None:
    await store.writer.write(operation, 0)
