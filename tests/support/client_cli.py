"""The command `segrec` against the fake server: its inputs, and what it wrote."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.support.fake_segrec import WAIT_SECONDS, FakeSegrec, StreamLost

USERS = [f"user-{n}" for n in range(2000)]
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner that ignores SIGINT hands that down to its children
from segrec.cli.main import main
sys.exit(main())
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeSegrec]:
    monkeypatch.chdir(tmp_path)
    with FakeSegrec() as server:
        monkeypatch.setenv("SEGREC_ADDRESS", server.address)
        monkeypatch.setenv("SEGREC_MODEL_ADDRESS", server.address)
        yield server


@pytest.fixture
def users_file(tmp_path: Path) -> str:
    path = tmp_path / "users.csv"
    path.write_text("user_id\n" + "\n".join(USERS) + "\n", encoding="utf-8")
    return str(path)


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def read(path: str) -> list[dict[str, Any]]:
    if path.endswith(".parquet"):
        return pl.read_parquet(path).to_dicts()
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if path.endswith(".csv") else [json.loads(line) for line in file]


def kill_when_stalled(
    fake: FakeSegrec, arguments: list[str], chunk_number: int, number: signal.Signals
) -> tuple[int, str]:
    """Runs the command until the fake is about to answer that chunk; ends it by the signal."""
    reached, release = threading.Event(), threading.Event()
    begin = fake.script.answered_chunks

    def hold(chunk: int) -> None:
        if chunk - begin >= chunk_number:
            reached.set()
            release.wait(WAIT_SECONDS)
            raise StreamLost

    fake.script.before_answer = hold
    command = [sys.executable, "-c", INTERRUPTIBLE, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        assert reached.wait(WAIT_SECONDS)
        child.send_signal(number)
        _, text = child.communicate(timeout=WAIT_SECONDS)
    fake.script.before_answer = lambda _: None
    release.set()
    return child.returncode, text


def segrec_environment() -> dict[str, str]:
    """The environment in which a shell finds this installation's `segrec` first."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
