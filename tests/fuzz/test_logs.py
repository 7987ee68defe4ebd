"""Every reader gives the events of any log back, or refuses the log with the line."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings

from tests.contract.reading.case import Case
from tests.contract.reading.readers import READERS, Refusal
from tests.contract.reading.test_readers import expected
from tests.fuzz.log_files import LogFile, logs

_SLOW = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)


def check(log: LogFile) -> None:
    case = Case("", log.content, log.rows)
    with TemporaryDirectory() as folder:
        path = Path(folder) / log.name
        path.write_bytes(log.content)
        for reader in (reader for reader in READERS if not reader.suffixes):
            found = reader.read(path, Path(folder) / "scratch")
            if isinstance(found, Refusal):
                assert log.bad_line or log.may_be_refused, f"{reader.name}: {found.message}"
                assert path.name in found.message
                line = f"line {log.bad_line:,}" if log.bad_line else "line"
                assert re.search(rf"{line}\b", found.message), f"{reader.name}: {found.message}"
            else:
                assert not log.bad_line, f"{reader.name} gives {found}, though line {log.bad_line} is bad"
                assert list(found) == expected(case, reader), reader.name


@settings(max_examples=300, deadline=None, suppress_health_check=_SLOW)
@given(logs())
def test_any_log_is_read_by_every_reader(log: LogFile) -> None:
    check(log)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@settings(max_examples=10_000, deadline=None, suppress_health_check=_SLOW)
@given(logs())
def test_ten_thousand_logs_are_read_by_every_reader(log: LogFile) -> None:
    check(log)
