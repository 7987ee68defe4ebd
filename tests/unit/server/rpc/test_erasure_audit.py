"""Erasures in the audit log: who, which mark, and what happens where the log cannot be written."""

from pathlib import Path

import pytest

from server.adapters.lmdb_store import LmdbStore
from server.core.repository.audit import read_audit
from server.rpc.erasure_audit import ErasureAudit
from tests.support.memory_store import MemoryStore
from training.cli.traffic_tables import details_in_short


async def test_an_erasure_is_written_down_without_the_users_id(tmp_path: Path) -> None:
    store = LmdbStore.open(tmp_path / "store", 10)
    await ErasureAudit(store, tmp_path).add("somebody", 3, "ipv4:127.0.0.1:5")
    [entry] = read_audit(tmp_path)
    mark = (await store.erasure_mark("somebody")).hex()
    assert (entry.who, entry.what) == ("a caller at ipv4:127.0.0.1:5", "erase")
    assert entry.details == {"user_mark": mark, "erased_event_count": 3}
    assert details_in_short(entry) == f"3 events of the user with mark {mark}"
    assert "somebody" not in (tmp_path / "audit.jsonl").read_text()
    assert mark != (await store.erasure_mark("another")).hex()
    await store.close()


async def test_an_audit_that_cannot_be_written_is_in_the_servers_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await ErasureAudit(MemoryStore(), tmp_path / "missing").add("somebody", 3, "unix:")
    assert "a caller at unix: erased 3 events of the user with mark " in caplog.text
    assert "somebody" not in caplog.text
