"""Logs that are no files, each written by its own library or held by its own server."""

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import polars as pl
import pytest
from typer.testing import CliRunner

from tests.support.logs import planted_log
from tests.support.postgres_server import PASSWORD, PostgresServer
from training.cli.main import app
from training.config import Columns, Config, VisitSettings
from training.data.prepare import prepare
from training.data.reading.log_reader import RawLog, read_raw_log
from training.data.reading.sources import Log, Source, source_of
from training.errors import ConfigError, LogError
from training.runs import Run

START = datetime(2024, 1, 31, 10, tzinfo=UTC)
ROWS = [(7, "a", "view", None, 0), (8, "b", "buy", 2.5, 1), (7, "b", "view", None, 2)]
EXPECTED = [
    (str(user), item, action, value, round(START.timestamp() * 1000) + seconds * 1000)
    for user, item, action, value, seconds in ROWS
]


def table(rows: Sequence[tuple[object, ...]] = ROWS) -> pl.DataFrame:
    """The events with ids that are numbers, and times of the type that such sources have."""
    types = {"user_id": pl.Int64, "item_id": pl.String, "action": pl.String, "value": pl.Float64, "seconds": pl.Int64}
    frame = pl.DataFrame(rows, schema=types, orient="row")
    return frame.with_columns(timestamp=pl.lit(START) + pl.duration(seconds="seconds")).drop("seconds")


def read(log: Log, columns: Columns | None = None) -> RawLog:
    return read_raw_log(log, columns or Columns(), Path("never written"))


def rows_of(log: Log) -> list[tuple[object, ...]]:
    events = read(log).events
    return sorted(events.select(pl.col("user_id", "item_id", "action").cast(pl.String), "value", "timestamp").rows())


def source(text: str | Path) -> Source:
    found = source_of(str(text))
    assert isinstance(found, Source)
    return found


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A Delta table of three versions: one row deleted, and one added since."""
    place = tmp_path / "shop"
    table(ROWS[:2]).write_delta(place)
    table([(9, "z", "view", None, 9)]).write_delta(place, mode="append")
    from deltalake import DeltaTable

    DeltaTable(place).delete("user_id = 9")
    table(ROWS[2:]).write_delta(place, mode="append")
    return place


@pytest.fixture
def iceberg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An Iceberg table from which a row was deleted, in a catalog named `shop` of PyIceberg's configuration."""
    from pyiceberg.catalog import load_catalog
    from pyiceberg.utils.config import Config as PyIcebergConfig

    for name, value in {
        "TYPE": "sql",
        "URI": f"sqlite:///{tmp_path}/c.db",
        "WAREHOUSE": f"file://{tmp_path}/w",
    }.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__SHOP__{name}", value)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", PyIcebergConfig())  # it reads the environment once
    catalog = load_catalog("shop")
    catalog.create_namespace("logs")
    rows = table([*ROWS, (9, "z", "view", None, 9)]).to_arrow(compat_level=pl.CompatLevel.oldest())
    events = catalog.create_table("logs.events", schema=rows.schema)
    events.append(rows)
    events.delete("user_id = 9")
    return tmp_path / "w" / "logs" / "events"


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer) -> PostgresServer:
    """With the events in a table of the types that PostgreSQL has, and one that numbers its users by UUID."""
    moments = [(START + timedelta(seconds=row[4])).isoformat() for row in ROWS]
    values = ", ".join(
        f"({user}, '{item}', '{action}', {'NULL' if value is None else value}, '{moment}')"
        for (user, item, action, value, _), moment in zip(ROWS, moments, strict=True)
    )
    postgres_server.execute(
        "CREATE TABLE events (user_id bigint, item_id varchar(9), action text, value numeric(9, 2), at timestamptz)",
        f"INSERT INTO events VALUES {values}",
    )
    return postgres_server


SELECT = 'SELECT user_id, item_id, action, value, at AS "timestamp" FROM events'


def test_a_delta_table_is_read_as_its_newest_version(delta: Path) -> None:
    for text in (str(delta), f"delta:{delta}", f"{delta}/"):
        assert rows_of(source(text)) == sorted(EXPECTED), text
    assert source(delta).fingerprint() == source(delta).fingerprint()
    assert (source(delta).fingerprint()["file"], source(delta).fingerprint()["version"]) == ("delta:shop", 3)


def test_a_version_stays_the_same_while_the_table_goes_on(delta: Path) -> None:
    opened = source(delta)
    before = opened.fingerprint()
    table([(9, "z", "view", None, 9)]).write_delta(delta, mode="append")
    assert (rows_of(opened), opened.fingerprint()) == (sorted(EXPECTED), before)
    assert source(delta).fingerprint() != before


def test_an_iceberg_table_is_read_as_its_current_snapshot(iceberg: Path) -> None:
    newest = max(iceberg.glob("metadata/*.metadata.json"))
    for text in (str(iceberg), f"iceberg:{iceberg}", str(newest), "iceberg://shop/logs.events"):
        assert rows_of(source(text)) == sorted(EXPECTED), text
    prints = [source(text).fingerprint() for text in (str(iceberg), str(newest), "iceberg://shop/logs.events")]
    assert len({(each["table"], each["snapshot"]) for each in prints}) == 1
    before = sorted(iceberg.glob("metadata/*.metadata.json"))[-2]
    assert source(before).fingerprint()["snapshot"] != prints[0]["snapshot"]
    assert len(rows_of(source(before))) == 4


def test_uuids_of_an_iceberg_table_are_read_as_text_and_other_bytes_are_refused(iceberg: Path) -> None:
    import pyarrow as pa
    from pyiceberg.catalog import load_catalog
    from pyiceberg.schema import Schema
    from pyiceberg.types import BinaryType, FixedType, LongType, NestedField, UUIDType

    users, items = [[UUID(int=2**127 + 31 * row + kind) for row in range(3)] for kind in range(2)]
    kinds = {"user_id": UUIDType(), "item_id": FixedType(16), "other": BinaryType(), "timestamp": LongType()}
    fields = [NestedField(place, name, kind) for place, (name, kind) in enumerate(kinds.items(), 1)]
    as_bytes = [[uuid.bytes for uuid in uuids] for uuids in (users, items)]
    data = pa.table(
        {
            "user_id": pa.array(as_bytes[0], pa.uuid()),
            "item_id": pa.array(as_bytes[1], pa.binary(16)),
            "other": pa.array(as_bytes[1], pa.large_binary()),
            "timestamp": pa.array([1_706_697_000] * 3),
        }
    )
    load_catalog("shop").create_table("logs.uuids", schema=Schema(*fields)).append(data)
    events = read(source("iceberg://shop/logs.uuids")).events
    assert events.select("user_id", "item_id").rows() == [(str(a), str(b)) for a, b in zip(users, items, strict=True)]
    with pytest.raises(LogError, match=r"`other` \(user_id\) of Iceberg table .* unreadable in 3 rows .* row 1"):
        read(source("iceberg://shop/logs.uuids"), Columns(user_id="other"))


def test_two_newest_metadata_files_are_no_guess(iceberg: Path) -> None:
    newest = max(iceberg.glob("metadata/*.metadata.json"))
    (newest.parent / f"{newest.name[:5]}-other.metadata.json").write_bytes(newest.read_bytes())
    with pytest.raises(LogError, match=r"has two newest metadata files, .*; name one of them with --events"):
        source(iceberg).frame()


def test_a_query_is_read_once_with_all_its_types(database: PostgresServer) -> None:
    opened = source(database.address(SELECT))
    assert rows_of(opened) == sorted(EXPECTED)
    assert opened.fingerprint() == source(database.address(f"{SELECT};")).fingerprint() | {"query": SELECT}
    assert opened.fingerprint()["file"] == "postgresql:postgres"
    other = source(database.address(f"{SELECT} WHERE user_id = 7")).fingerprint()
    assert (other["rows"], other["sha256"] != opened.fingerprint()["sha256"]) == (2, True)
    uuid = "6f9619ff-8b86-d011-b42d-00c04fc964ff"
    log = read(
        source(database.address(f"SELECT '{uuid}'::uuid AS user_id, 5 AS item_id, now() AS at_time, now() AS ts"))
    )
    assert log.events["user_id"].cast(pl.String).to_list() == [uuid]


def test_plus_and_hash_are_parts_of_the_query(database: PostgresServer) -> None:
    address = database.address("X").replace("query=X", "query=SELECT 1+1 AS user_id, 5 # 1 AS item_id, now() AS ts")
    assert rows_of(source(address))[0][:2] == ("2", "4")


@pytest.mark.parametrize(
    "statement", ["DELETE FROM events RETURNING *", "DROP TABLE events", f"{SELECT}; DROP TABLE events"]
)
def test_a_query_changes_nothing(database: PostgresServer, statement: str) -> None:
    with pytest.raises(LogError, match=r"PostgreSQL query to postgres cannot be read: .*(read-only|multiple commands)"):
        source(database.address(statement)).frame()
    assert len(rows_of(source(database.address(SELECT)))) == 3


@pytest.mark.parametrize(
    ("query", "changes", "reason"),
    [
        ("SELECT 1 FROM nowhere", {}, 'relation "nowhere" does not exist'),
        (SELECT, {"database": "nowhere"}, 'database "nowhere" does not exist'),
        (SELECT, {"login": "segrec:wr%6Fng"}, "password authentication failed"),
        (SELECT, {"login": "segrec:100%"}, "password authentication failed"),
        (SELECT, {"password": "wr0ng", "login": "segrec"}, "password authentication failed"),
        (SELECT, {"sslmode": "sure", "password": "sure"}, "invalid sslmode"),
        (SELECT + "%26b=2", {"b": "2"}, "invalid URI query parameter"),
        ("SELECT interval '1 day' AS gap", {}, "`gap` of the query holds intervals"),
    ],
)
def test_what_a_database_refuses_is_said_without_the_password(
    database: PostgresServer, query: str, changes: dict[str, str], reason: str
) -> None:
    with pytest.raises(LogError, match=reason) as refused:
        source(database.address(query, **changes)).frame()
    for secret in (PASSWORD, quote(PASSWORD, safe=""), "wrong", "wr%6Fng", "100%", "wr0ng", '"sure"'):
        assert secret not in str(refused.value)
    assert refused.value.__cause__ is None  # a traceback shows no more than the message does


def test_a_query_that_is_missing_is_asked_for() -> None:
    with pytest.raises(LogError, match=r"postgresql://db:5432/shop lacks a query: add `\?query=SELECT…`"):
        source_of("postgresql://me:secret@db:5432/shop")


@pytest.mark.parametrize("way", ["environment", "file"])
def test_the_password_can_be_kept_elsewhere(
    database: PostgresServer, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "environment":
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
    else:
        escaped = PASSWORD.replace(":", "\\:")
        (tmp_path / "pgpass").write_text(f"127.0.0.1:{database.port}:*:segrec:{escaped}\n")
        (tmp_path / "pgpass").chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    assert len(rows_of(source(database.address(SELECT, login="segrec")))) == 3


def test_no_file_of_a_run_has_the_password(database: PostgresServer, tmp_path: Path) -> None:
    address = database.address(f"{SELECT} UNION ALL SELECT 7, 'c', 'view', 1, now() - interval '1 hour'")
    done = CliRunner().invoke(app, ["prepare", "--events", address, "--runs", str(tmp_path / "runs"), "--run", "a"])
    assert done.exit_code == 0, done.output
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(written) >= 5
    for text in (PASSWORD, quote(PASSWORD, safe="")):
        assert text not in done.output
        assert not [path for path in written if text.encode() in path.read_bytes()]
    assert Run(tmp_path / "runs" / "a").record()["data"]["events"]["rows"] == 4


def test_rows_without_an_order_need_a_time(delta: Path, database: PostgresServer, tmp_path: Path) -> None:
    table().drop("timestamp").write_delta(tmp_path / "timeless")
    with pytest.raises(LogError, match="timeless has no time column, and its rows have no order of their own"):
        read(source(tmp_path / "timeless"))
    with pytest.raises(LogError, match=r"\[columns\] timestamp = .*add ORDER BY"):
        read(source(database.address("SELECT user_id, item_id FROM events")))
    assert read(source(database.address("SELECT user_id, item_id FROM events ORDER BY at"))).ordered_by_row
    config = Config(visits=VisitSettings(ordered=True))
    with pytest.raises(ConfigError, match=r"\[visits\] ordered = true needs an order of the rows"):
        prepare(Run.create(tmp_path / "runs"), source(delta), None, None, config)


@pytest.mark.parametrize(
    ("text", "module", "packages"),
    [
        ("delta:x", "deltalake", "deltalake"),
        ("iceberg:x", "pyiceberg.table", "pyiceberg and pyarrow"),
        ("postgresql://h/d?query=SELECT%201", "adbc_driver_postgresql.dbapi", "adbc-driver-postgresql and pyarrow"),
    ],
)
def test_a_missing_library_is_named(text: str, module: str, packages: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LogError, match=rf"needs {packages}: `pip install 'segrec-platform\[sources\]'`"):
        source(text).frame()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("delta:{}/none", "none cannot be read: .*does not exist"),
        ("iceberg:{}/none", "There is no Iceberg table at"),
        ("iceberg:{}/none.metadata.json", "There is no Iceberg table at|cannot be read"),
        ("iceberg://nobody/logs.events", "Iceberg table //nobody/logs.events cannot be read: .*NOBODY"),
        ("{}/none", "There is no file"),
    ],
)
def test_a_place_without_a_table_is_said(text: str, reason: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["prepare", "--events", text.format(tmp_path), "--runs", str(tmp_path / "runs")])
    assert done.exit_code == 2
    assert re.search(reason, done.output.replace("\n", " ")), done.output


def test_a_table_gives_the_run_that_its_file_gives(tmp_path: Path) -> None:
    events, _ = planted_log(users=12, items=8, segments=2, events_per_user=10)
    events.write_parquet(tmp_path / "log.parquet")
    events.with_columns(pl.from_epoch("timestamp", time_unit="ms")).write_delta(tmp_path / "log")
    prepared = [
        prepare(Run.create(tmp_path / "runs"), source_of(str(tmp_path / name)), None, None, Config()).directory
        for name in ("log.parquet", "log")
    ]
    first, second = (pl.read_parquet(directory / "events.parquet") for directory in prepared)
    assert first.equals(second)
