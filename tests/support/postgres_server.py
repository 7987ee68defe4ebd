"""A real PostgreSQL server (Debian's package of that name) on a free port, for the tests of logs from a database."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.ports import free_port
from tests.support.waiting import wait_until

PASSWORD = "s3cret:/?@ %41"  # every character that an address must encode
_USER = "segrec"
_STARTS_MAX = 5


@dataclass(frozen=True)
class PostgresServer:
    """Its database is `postgres`; users need `PASSWORD`."""

    port: int

    def address(self, query: str, *, login: str | None = None, database: str = "postgres", **parameters: str) -> str:
        """What `--events` takes; `login` is the part before the @, else the user and the password."""
        login = f"{_USER}:{quote(PASSWORD, safe='')}" if login is None else login
        pairs = {"query": query} | parameters
        tail = "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs.items())
        return f"postgresql://{login}@127.0.0.1:{self.port}/{database}?{tail}"

    def execute(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own."""
        from adbc_driver_postgresql.dbapi import connect

        with connect(self.address("").partition("?")[0], autocommit=True) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


def _programs() -> Path:
    """The directory of the server's programs: Debian keeps those of each version apart."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve()] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert found, "initdb is missing: install it, for instance with `apt-get install postgresql`"
    return found[-1].parent


def _has_ended_or_answers(process: subprocess.Popen[bytes], port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return process.poll() is not None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """PostgreSQL refuses to run as root, so root starts it as the user that Debian's package made.

    pytest's own directories are closed to that user.
    """
    programs = _programs()
    with tempfile.TemporaryDirectory(prefix="segrec-postgres-") as place:
        account: dict[str, Any] = {}
        if os.getuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(place, owner.pw_uid, owner.pw_gid)
            account = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        _make_cluster(programs, Path(place), account)
        with _started(programs, Path(place), account) as port:
            yield PostgresServer(port)


def _make_cluster(programs: Path, place: Path, account: dict[str, Any]) -> None:
    password = place / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)
    access = ["-U", _USER, "--auth=scram-sha-256", f"--pwfile={password}"]
    command = [str(programs / "initdb"), "-D", str(place / "data"), *access, "--no-sync"]
    command += ["--encoding=UTF8", "--no-locale"]
    made = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, **account)
    assert made.returncode == 0, made.stderr


@contextmanager
def _started(programs: Path, place: Path, account: dict[str, Any]) -> Iterator[int]:
    """The port of a server that answers; another port is tried where somebody was quicker."""
    for _ in range(_STARTS_MAX):
        port = free_port()
        settings = ["-p", str(port), "-k", "", "-c", "fsync=off"]
        command = [str(programs / "postgres"), "-D", str(place / "data"), *settings]
        process = subprocess.Popen(command, cwd=place, stderr=subprocess.DEVNULL, **account)
        try:
            wait_until(partial(_has_ended_or_answers, process, port))
            if process.poll() is None:
                yield port
                return
        finally:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown: it does not wait for its callers
            process.wait()
    pytest.fail(f"PostgreSQL did not start in {_STARTS_MAX} tries")
