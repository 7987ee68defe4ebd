"""UUIDs of Parquet files, as all readers of both sides know them."""

import sys
from pathlib import Path
from uuid import UUID

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from segrec.reading.uuids import uuid_columns, uuid_text

from training.config import Columns
from training.data.reading.log_reader import read_raw_log
from training.errors import LogError

ONE = UUID("6f9619ff-8b86-d011-b42d-00c04fc964ff")


def written(tmp_path: Path) -> Path:
    kinds = {"user_id": pa.uuid(), "item_id": pa.binary(16), "short": pa.binary(4), "loose": pa.binary()}
    data = {"user_id": ONE.bytes, "item_id": ONE.bytes, "short": b"abcd", "loose": ONE.bytes}
    columns = {name: pa.array([data[name]] * 2, kind) for name, kind in kinds.items()}
    nested = pa.array([[ONE.bytes]] * 2, pa.list_(pa.binary(16)))
    pq.write_table(pa.table(columns | {"list": nested, "timestamp": [1, 2]}), tmp_path / "log.parquet")
    return tmp_path / "log.parquet"


def test_only_columns_of_16_bytes_each_hold_uuids(tmp_path: Path) -> None:
    path = written(tmp_path)
    binary = [name for name, dtype in pl.read_parquet_schema(path).items() if dtype == pl.Binary]
    assert binary == ["user_id", "item_id", "short", "loose"]
    assert uuid_columns(str(path), binary) == {"user_id", "item_id"}
    assert (uuid_text(ONE.bytes), uuid_text(None)) == (str(ONE), None)


def test_without_pyarrow_they_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    assert read_raw_log(path, Columns(), tmp_path).events["user_id"].to_list() == [str(ONE)] * 2
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(LogError, match=r"`user_id` .* unreadable in 2 rows .* UUIDs of 16 bytes \(Parquet, read with"):
        read_raw_log(path, Columns(), tmp_path)
