"""One table of cases against every reader: the same ids, times and values, or a refusal that says where and why."""

import re
from pathlib import Path

import pytest

from tests.contract.reading.case import BAD, HEADER, Case
from tests.contract.reading.cases import CASES
from tests.contract.reading.readers import PREPARED, READERS, Reader, Refusal


def expected(case: Case, reader: Reader) -> list[tuple[object, ...]]:
    """The rows without those that lack an id or hold a value that cannot be read, as far as the reader sees them."""
    ids = [role for role in reader.roles if role not in ("value", "timestamp")]
    complete = [row for row in case.rows if all(getattr(row, role) is not None for role in ids)]
    rows = [tuple(getattr(row, role) for role in reader.roles) for row in complete]
    kept = [row for row in rows if BAD not in row]
    return list(dict.fromkeys(kept)) if reader.is_table else kept


def may_be_refused(case: Case, reader: Reader) -> bool:
    values = [getattr(row, role) for row in case.rows for role in reader.roles]
    return BAD in values or (reader.refuses_missing and None in values)


def written(case: Case, directory: Path) -> Path:
    for name, content in {**case.beside, case.file: case.content}.items():
        (directory / name).write_bytes(content)
    return directory / case.file


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_reader_finds_the_same(tmp_path: Path, case: Case, reader: Reader) -> None:
    if reader.name in case.not_for or (reader.suffixes and not case.file.endswith(tuple(reader.suffixes))):
        return
    path = written(case, tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = reader.read(path, scratch)
    if isinstance(found, Refusal):
        assert case.refusal or may_be_refused(case, reader), found.message
        assert path.name in found.message
        assert re.search(case.refusal, found.message), found.message
        assert "\n" not in found.message
    else:
        assert not case.refusal, found
        assert list(found) == expected(case, reader)


@pytest.mark.parametrize("case", CASES[::7], ids=lambda case: case.name)
def test_a_server_starts_with_no_file_that_was_not_prepared(tmp_path: Path, case: Case) -> None:
    path = written(case, tmp_path)
    found = PREPARED.read(path, tmp_path)
    assert isinstance(found, Refusal)
    assert str(path) in found.message
    assert "segrec-train prepare" in found.message


def test_a_directory_and_a_missing_file_are_refused_by_the_client(tmp_path: Path) -> None:
    for reader in READERS[1:3]:
        for path in (tmp_path, tmp_path / "none.csv"):
            found = reader.read(path, tmp_path)
            assert isinstance(found, Refusal)
            assert str(path) in found.message


def test_the_names_of_the_cases_are_distinct_and_each_role_has_a_bad_value() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert {role for role in HEADER for case in CASES for row in case.rows if getattr(row, role) is BAD} == {*HEADER}
