"""Logs that are no files: Delta and Iceberg tables, and queries to PostgreSQL.

Their libraries are the extra `sources`, and are imported when such a log is opened.
"""

import hashlib
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, cast
from urllib.parse import quote, unquote

import polars as pl
from polars.exceptions import PolarsError
from segrec.reading.uuids import UUID_BYTES

from training.data.reading.log_files import LogFiles
from training.data.reading.uuids import uuid_text, with_uuid_texts
from training.errors import LogError

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable
    from pyiceberg.table import Table

_POSTGRES = ("postgresql://", "postgres://")
_METADATA = ".metadata.json"
_SECRETS = ("password", "sslpassword")
"""Parameters of a PostgreSQL address that no text may repeat."""


class Source(ABC):
    """A log that is no file. `str(source)` names it for people, without a password."""

    @property
    def has_row_order(self) -> bool:
        """Whether the order of the rows means something; the rows of a table have none."""
        return False

    @abstractmethod
    def frame(self) -> pl.LazyFrame:
        """The rows of one version, the same at each call. Raises LogError with the reason if it cannot be opened."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """A name under `file`, and what tells this version of the rows from others. Raises LogError as `frame` does."""


Log = Path | LogFiles | Source
"""What a log is read from."""


def source_of(text: str) -> Path | Source:
    """What `--events` names: a file, or one of the other sources.

    `delta:PLACE` and a directory with `_delta_log` are Delta tables. `iceberg:PLACE`, a directory with Iceberg metadata
    and a file `….metadata.json` are Iceberg tables, so is `iceberg://CATALOG/NAMESPACE.TABLE` of a catalog that
    PyIceberg's configuration names. `postgresql://…?query=…` is a query. Raises LogError for an address without one.
    """
    if text.startswith(_POSTGRES):
        return PostgresQuery.parse(text)
    for prefix, kind in (("delta:", DeltaSource), ("iceberg:", IcebergSource)):
        if text.startswith(prefix):
            return kind(text.removeprefix(prefix))
    path = Path(text)
    if (path / "_delta_log").is_dir():
        return DeltaSource(text)
    is_iceberg = path.name.endswith(_METADATA) or any(path.glob(f"metadata/*{_METADATA}"))
    return IcebergSource(text) if is_iceberg else path


def fingerprint_of(log: Log) -> dict[str, Any]:
    """A name under `file`, and what tells this content from another."""
    return (LogFiles.of([log]) if isinstance(log, Path) else log).fingerprint()


@dataclass(frozen=True)
class _Table(Source):
    """A table at `place`, of the kind that a subclass names."""

    place: str
    kind: ClassVar[str]

    def __str__(self) -> str:
        return f"{self.kind} table {self.place}"


@dataclass(frozen=True)
class DeltaSource(_Table):
    """The newest version of the Delta table at `place`, a directory or an address such as s3://bucket/table."""

    kind = "Delta"

    @cached_property
    def _table(self) -> "DeltaTable":
        with _library("deltalake"):
            from deltalake import DeltaTable
            from deltalake.exceptions import DeltaError
        with _readable(self, DeltaError):
            return DeltaTable(self.place)

    def frame(self) -> pl.LazyFrame:
        table = self._table
        from deltalake.exceptions import DeltaError

        with _readable(self, DeltaError):
            return pl.scan_delta(table)

    def fingerprint(self) -> dict[str, Any]:
        table = self._table
        return {"file": f"delta:{_name(self.place)}", "table": str(table.metadata().id), "version": table.version()}


@dataclass(frozen=True)
class IcebergSource(_Table):
    """The current snapshot of the Iceberg table at `place`: a metadata file, a directory, or //CATALOG/NAME."""

    kind = "Iceberg"

    @cached_property
    def _table(self) -> "Table":
        with _library("pyiceberg", "pyarrow"):
            from pyiceberg.catalog import load_catalog
            from pyiceberg.table import StaticTable
        with _readable(self, Exception):  # each catalog and each file system has errors of its own
            if self.place.startswith("//"):
                catalog, _slash, name = self.place.removeprefix("//").partition("/")
                return load_catalog(catalog).load_table(name)
            return StaticTable.from_metadata(_metadata_file(self.place))

    @property
    def _snapshot_id(self) -> int | None:
        snapshot = self._table.current_snapshot()
        return None if snapshot is None else snapshot.snapshot_id

    def frame(self) -> pl.LazyFrame:
        snapshot = self._table.current_snapshot()
        frame = pl.scan_iceberg(self._table, snapshot_id=self._snapshot_id)
        return with_uuid_texts(frame, () if snapshot is None else _uuid_fields(self._table))

    def fingerprint(self) -> dict[str, Any]:
        table = self._table
        name = f"iceberg:{_name(self.place)}"
        return {"file": name, "table": str(table.metadata.table_uuid), "snapshot": self._snapshot_id}


@dataclass(frozen=True)
class PostgresQuery(Source):
    """The rows of a query, read once in a read-only transaction through libpq, which knows PGPASSWORD and ~/.pgpass."""

    database: str
    query: str
    address: str = field(repr=False)
    """The address for libpq; it may hold a password."""
    secrets: tuple[str, ...] = field(repr=False)
    """Texts that are masked in messages."""

    @classmethod
    def parse(cls, text: str) -> "PostgresQuery":
        """From postgresql://USER:PASSWORD@HOST:PORT/DATABASE?query=SQL&…, whose values are URL-encoded."""
        address, _, tail = text.partition("?")
        scheme, _, rest = address.partition("://")
        place, slash, database = rest.partition("/")
        login, at, hosts = place.rpartition("@")
        user, colon, password = (unquote(part) for part in login.partition(":"))
        pairs = [part.partition("=") for part in tail.split("&") if part]
        parameters = [(name, unquote(value)) for name, _, value in pairs]
        query = ";".join(value for name, value in parameters if name == "query").strip().rstrip(";")
        if not query:
            raise LogError(
                f"{scheme}://{hosts}/{database} lacks a query: add `?query=SELECT…`, URL-encoded (a blank is %20)."
            )
        others = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters if name != "query")
        encoded = f"{quote(user, safe='')}{colon}{quote(password, safe='')}{at}{hosts}{slash}{database}"
        secrets = (password, *(value for name, value in parameters if name in _SECRETS))
        return cls(
            database=unquote(database) or "default",
            query=query,
            address=f"{scheme}://{encoded}{'?' if others else ''}{others}",
            secrets=tuple(filter(None, secrets)),
        )

    def __str__(self) -> str:
        return f"PostgreSQL query to {self.database}"

    @property
    def has_row_order(self) -> bool:
        return re.search(r"\border\s+by\b", self.query, re.IGNORECASE) is not None

    @cached_property
    def _rows(self) -> pl.DataFrame:
        with _library("adbc-driver-postgresql", "pyarrow"):
            import adbc_driver_manager
            from adbc_driver_postgresql.dbapi import connect
        with (
            _readable(self, adbc_driver_manager.Error, secrets=self.secrets),
            connect(self.address) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SET TRANSACTION READ ONLY")
            cursor.execute(self.query)
            return _from_postgres(cursor.fetch_arrow_table())

    def frame(self) -> pl.LazyFrame:
        return self._rows.lazy()

    def fingerprint(self) -> dict[str, Any]:
        digest = _Digest()
        self._rows.rechunk().write_ipc_stream(cast(IO[bytes], digest), compat_level=pl.CompatLevel.oldest())
        return {
            "file": f"postgresql:{self.database}",
            "query": self.query,
            "rows": len(self._rows),
            "sha256": digest.sha256.hexdigest(),
        }


class _Digest(io.RawIOBase):
    """A file of which only the sha256 is kept."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return len(data)


@contextmanager
def _library(*packages: str) -> Iterator[None]:
    """Turn a failed import into a LogError that says what to install."""
    try:
        yield
    except ImportError as error:
        raise LogError(
            f"This log needs {' and '.join(packages)}: `pip install 'segrec-platform[sources]'` ({error})."
        ) from error


@contextmanager
def _readable(source: Source, *errors: type[Exception], secrets: tuple[str, ...] = ()) -> Iterator[None]:
    """Turn `errors`, and what Polars and the system raise, into a LogError; `secrets` are masked in its text."""
    kinds: tuple[type[Exception], ...] = (*errors, PolarsError, OSError)
    try:
        yield
    except LogError:
        raise
    except kinds as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        for secret in secrets:
            for spelling in (secret, quote(secret, safe="")):
                reason = reason.replace(spelling, "***")
        raise LogError(f"{source} cannot be read: {reason.rstrip('.')}.") from None


def _from_postgres(table: "pa.Table") -> pl.DataFrame:
    """The rows with numerics as texts of all their digits, and UUIDs as texts. Raises LogError for other types."""
    kinds = {field.name: (field.metadata or {}).get(b"POSTGRESQL:type", b"").decode() for field in table.schema}
    refused = [name for name in table.column_names if str(table.schema.field(name).type) == "month_day_nano_interval"]
    if refused:
        raise LogError(f"The column `{refused[0]}` of the query holds intervals, which cannot be read; leave it out.")
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    extensions = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.BaseExtension)]
    uuids = [name for name, kind in kinds.items() if kind == "uuid"]
    return frame.with_columns(
        *(pl.col(name).ext.storage() for name in extensions if name not in uuids),
        *(uuid_text(name) for name in uuids),
    )


def _uuid_fields(table: "Table") -> list[str]:
    """The columns of an Iceberg table whose values are 16 bytes each."""
    from pyiceberg.types import FixedType, UUIDType

    kinds = {field.name: field.field_type for field in table.schema().fields}
    return [name for name, kind in kinds.items() if isinstance(kind, UUIDType) or kind == FixedType(UUID_BYTES)]


def _name(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2]


def _metadata_file(place: str) -> str:
    """The newest metadata file of a table. Raises LogError if a directory does not say which one is the newest."""
    path = Path(place)
    if "://" in place or path.is_file() or (path / "metadata" / "version-hint.text").is_file():
        return place if "://" in place else str(path.resolve())
    by_number: dict[int, list[Path]] = {}
    for file in path.glob(f"metadata/*{_METADATA}"):
        if number := re.match(r"v?(\d+)", file.name):
            by_number.setdefault(int(number[1]), []).append(file)
    if not by_number:
        raise LogError(f"There is no Iceberg table at {place}: no metadata/*{_METADATA}.")
    newest = by_number[max(by_number)]
    if len(newest) > 1:
        names = " and ".join(sorted(file.name for file in newest))
        raise LogError(f"{place} has two newest metadata files, {names}; name one of them with --events.")
    return str(newest[0].resolve())
