"""The server's log: texts of callers and files are data."""

import json
import logging

import pytest

from server import logs

EVIL = "a\x1b[31m\x9b2J\nINFO forged: line"


@pytest.fixture
def formatter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> logging.Formatter:
    made: list[logging.Handler] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **options: made.extend(options["handlers"]))
    logs.configure(request.param, access=False)
    assert made[0].formatter is not None
    return made[0].formatter


def record(**parts: object) -> logging.LogRecord:
    made = logging.LogRecord("server.rpc", logging.WARNING, "", 1, "user %s", (EVIL,), None)
    made.request = made.request_id = ""
    made.__dict__.update(parts)
    return made


@pytest.mark.parametrize("formatter", ["text"], indirect=True)
def test_a_record_is_one_line_without_control_characters(formatter: logging.Formatter) -> None:
    line = formatter.format(record())
    assert line.isprintable()
    assert line.endswith(r"user a\u001b[31m\u009b2J\nINFO forged: line")


@pytest.mark.parametrize("formatter", ["text"], indirect=True)
def test_a_traceback_keeps_its_lines(formatter: logging.Formatter) -> None:
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        lines = formatter.format(record(exc_info=(type(error), error, error.__traceback__))).split("\n")
    assert len(lines) > 3
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("formatter", ["json"], indirect=True)
def test_json_keeps_the_value(formatter: logging.Formatter) -> None:
    line = formatter.format(record())
    assert line.isprintable()
    assert json.loads(line)["message"] == f"user {EVIL}"
