"""Text of files on a terminal."""

import json

import pytest
from segrec.visible import visible, visible_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\u001b[31mred"),
        ("\x9b2J", r"\u009b2J"),  # the same in one character
        ("a\nb\tc\rd\x00\x07\x7f", r"a\nb\tc\rd\u0000\u0007\u007f"),
        ("evil\u202etxt.exe\u2066\u2028", r"evil\u202etxt.exe\u2066\u2028"),
        ("\udc80", r"\udc80"),
        ("茶叶\u3000é [/view] <b> 👩\u200d💻 :smile:", "茶叶\u3000é [/view] <b> 👩\u200d💻 :smile:"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_lines_keep_their_breaks() -> None:
    assert visible_lines("first\r\nsecond\x1b[0m\n") == "first\\r\nsecond\\u001b[0m\n"


def test_a_line_of_json_stays_the_same_value() -> None:
    record = {"title": "\x1b[31m\x9b \u2028 \x7f 茶\n"}
    line = visible(json.dumps(record, ensure_ascii=False))
    assert line.isprintable()
    assert json.loads(line) == record
