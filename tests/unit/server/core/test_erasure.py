"""Marks of erased users, and the file that carries them to the training."""

import json
import stat
from pathlib import Path

import pytest

from server.core.erasure import ErasureMarks, erasure_mark, new_erasure_key
from server.core.errors import SetupError


def test_erased_users_are_known_after_a_round_trip_and_nobody_else_is(tmp_path: Path) -> None:
    marks = ErasureMarks(new_erasure_key(), {})
    marks.mark("ann", 100)
    marks.mark("用户", 300)
    marks.mark("用户", 200)
    marks.write(tmp_path / "erasures.json")
    read = ErasureMarks.read(tmp_path / "erasures.json")
    assert len(read) == 2
    assert (read.erased_seconds("ann"), read.erased_seconds("用户"), read.erased_seconds("bob")) == (100, 300, None)
    assert read.covers("ann")
    assert not read.covers("bob")


def test_the_file_is_for_its_owner_only_and_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "erasures.json"
    path.write_text("older")
    path.chmod(0o644)
    marks = ErasureMarks(new_erasure_key(), {})
    marks.mark("ann", 100)
    marks.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "ann" not in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["erasures.json"]


def test_a_mark_cannot_be_tried_without_its_key() -> None:
    assert erasure_mark(new_erasure_key(), "ann") != erasure_mark(new_erasure_key(), "ann")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"key": "00", "erased_seconds": {}}', '{"key": 5, "erased_seconds": {}}']
    + [json.dumps({"key": "00" * 32, "erased_seconds": marks}) for marks in ({"00": 5}, {"x": 5}, {"00" * 16: "x"}, 5)],
)
def test_another_file_is_refused_with_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "erasures.json").write_text(content)
    with pytest.raises(SetupError, match=r"erasures\.json holds .*segrec-store export-erasures"):
        ErasureMarks.read(tmp_path / "erasures.json")
