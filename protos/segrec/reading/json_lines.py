"""Values of NDJSON: one JSON value on each line."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from segrec.reading.refusals import Refused
from segrec.reading.words import BLANKS


def json_values(lines: Iterable[str], where: object) -> Iterator[tuple[int, Any]]:
    """The number of each line that is not blank, from 1, and its value. `where` is the file's name in messages.

    Raises Refused with the line for text that is not JSON, for an array over all lines, and for two values on a line.
    """
    for number, line in enumerate(lines, start=1):
        text = line.strip(BLANKS)
        if not text:
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Refused(f"{where}, line {number:,}{_reason(text, error)}") from None
        if isinstance(value, list):
            raise Refused(f"{where}, line {number:,}{_ARRAY}")
        yield number, value


_ARRAY = ": this is a JSON array; write one object on each line, for instance with `jq -c '.[]'`"


def _reason(text: str, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return " is nested too deeply"
    if text.startswith("["):
        return _ARRAY
    if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
        return f" holds more than one value: write one object on each line (the second one begins at {error.colno})"
    if isinstance(error, json.JSONDecodeError):
        return f" is not JSON: {error.msg} at character {error.colno}; write one object on each line"
    return f" is not JSON: {error}"
