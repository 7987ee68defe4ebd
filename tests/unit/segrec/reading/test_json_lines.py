"""Values of NDJSON."""

import pytest
from segrec.reading.json_lines import json_values
from segrec.reading.refusals import Refused


def test_values_carry_their_lines() -> None:
    lines = ['{"a": 1.0}\r\n', "\n", ' "x"\n', "\u00a0\n", "7"]
    assert list(json_values(lines, "f")) == [(1, {"a": 1.0}), (3, "x"), (5, 7)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1', r"f\.ndjson, line 2 is not JSON: Expecting ',' delimiter at character 8; write one object"),
        ("{'a': 1}", r"line 2 is not JSON: Expecting property name"),
        ('{"a": 1} {"a": 2}', r"line 2 holds more than one value: .* \(the second one begins at 10\)"),
        ("[", r"line 2: this is a JSON array; .*`jq -c '.\[\]'`"),
        ('[{"a": 1}]', r"line 2: this is a JSON array"),
        ("[" * 100_000, r"line 2 is nested too deeply"),
        ('{"a": ' * 100_000, r"line 2 is nested too deeply"),
        ("9" * 5000, r"line 2 is not JSON: Exceeds the limit"),
    ],
)
def test_bad_lines_are_refused_with_their_line(line: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        list(json_values(['{"a": 0}\n', line + "\n"], "f.ndjson"))
