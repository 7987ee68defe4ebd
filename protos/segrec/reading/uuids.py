"""UUIDs in Parquet files: which columns hold them, and how they are written as text."""

from collections.abc import Collection
from uuid import UUID

UUID_BYTES = 16


def uuid_columns(path: str, binary: Collection[str]) -> frozenset[str]:
    """Those among the `binary` columns of a Parquet file in which each value is a fixed number of 16 bytes.

    Polars reads them as plain bytes, so pyarrow is asked; without it none is found, and ids of such bytes are refused.
    """
    if not binary:
        return frozenset()
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        return frozenset()
    with ParquetFile(path) as file:
        columns = [file.schema.column(index) for index in range(len(file.schema))]
    return frozenset(column.path for column in columns if column.path in binary and column.length == UUID_BYTES)


def uuid_text(data: bytes | None) -> str | None:
    """The canonical text of a UUID's 16 bytes, such as 6f9619ff-8b86-d011-b42d-00c04fc964ff."""
    return None if data is None else str(UUID(bytes=data))
