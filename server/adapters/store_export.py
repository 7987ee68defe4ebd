"""Writes the events of a history store as a log for the next training."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from server.core.history import History
from server.core.repository.layout import EVENTS_MARK, WITH_CLOCK

BATCH_EVENTS = 500_000
"""Events in memory at a time."""
_SCHEMA = {
    "user_id": pl.String(),
    "item_id": pl.String(),
    "action": pl.String(),
    "timestamp": pl.Int64(),
    "value": pl.Float64(),
}

StoredHistories = AsyncIterator[tuple[str, History | None]]
"""(user id, history) of each user, in any order; None for a damaged history."""


class Exported(NamedTuple):
    """What was written, and how many histories could not be read."""

    user_count: int
    event_count: int
    damaged_count: int


async def export_events(histories: StoredHistories, out: Path) -> Exported:
    """Write Parquet that `segrec-train prepare --events` and `bootstrap_events` read.

    Its columns are user_id, item_id, action, timestamp (ms, UTC) and value, null for an event without value. The file
    appears whole or not at all. Raises OSError and polars' errors.
    """
    users = events = damaged = 0
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        batch: list[tuple[str, History]] = []
        batch_events = part_count = 0
        async for user_id, history in histories:
            if history is None:
                damaged += 1
                continue
            users += bool(history)
            events += len(history)
            batch.append((user_id, history))
            batch_events += len(history)
            if batch_events >= BATCH_EVENTS:
                _table(batch).write_parquet(temporary / f"{part_count:06}.parquet")
                batch, batch_events, part_count = [], 0, part_count + 1
        _table(batch).write_parquet(temporary / f"{part_count:06}.parquet")
        whole = temporary / "whole"
        pl.scan_parquet(temporary / "*.parquet").sink_parquet(
            whole, maintain_order=True, metadata={EVENTS_MARK: WITH_CLOCK}
        )
        whole.replace(out)
    finally:
        shutil.rmtree(temporary)
    return Exported(users, events, damaged)


def _table(histories: list[tuple[str, History]]) -> pl.DataFrame:
    tables = [
        pl.DataFrame(
            {
                "user_id": [user_id] * len(history),
                "item_id": history.item_ids,
                "action": history.actions,
                "timestamp": history.timestamps,
                "value": history.values,
            },
            _SCHEMA,
        )
        for user_id, history in histories
        if history
    ]
    whole = pl.concat(tables) if tables else pl.DataFrame(schema=_SCHEMA)
    return whole.with_columns(pl.col("value").fill_nan(None))
