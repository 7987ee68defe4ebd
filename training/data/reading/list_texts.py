"""Lists that a tool wrote as text: JSON, Python's and NumPy's."""

import ast
import json
import re
import tokenize
from collections.abc import Iterator
from io import StringIO

_LIST = re.compile(r"\[|\(\s*['\"]|\{.*\}\Z", re.DOTALL)
_CERTAIN_LIST = re.compile(r"[\[(]\s*['\"\[({]|\{")
_MARKS = frozenset("[](),")
_NOTHING = frozenset(("None", "nan", "null", "NaN"))
_SKIPPED = (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)


def listed(text: str) -> list[str] | None:
    """The texts and numbers of a list that is written as text, lists in the list too, in order; None for other text.

    `["Home", "Light"]`, `['Home', 'Light']`, `['Home' 'Light']` (NumPy) and `[["Home"], ["Light"]]` give the same.
    Raises ValueError for a text that begins like a list of quoted texts and is none, and for objects.
    """
    text = text.strip()
    if not _LIST.match(text):
        return None
    try:
        return list(_leaves(json.loads(text)))
    except ValueError:
        pass
    try:
        return list(_tokens(text))
    except (ValueError, SyntaxError, tokenize.TokenError):
        if _CERTAIN_LIST.match(text):
            raise ValueError("a list that is cut off or wrong, or of objects") from None
        return None


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)
    elif value is not None:
        raise ValueError("neither text nor number")


def _tokens(text: str) -> Iterator[str]:
    """The strings and numbers of a list as Python and NumPy print it."""
    depth = 0
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type == tokenize.OP and token.string in _MARKS:
            depth += (token.string in "[(") - (token.string in "])")
        elif token.type == tokenize.STRING:
            yield str(ast.literal_eval(token.string))
        elif token.type == tokenize.NUMBER:
            yield token.string
        elif token.type not in _SKIPPED and token.string not in _NOTHING:
            raise ValueError("not a list of texts and numbers")
    if depth:
        raise ValueError("brackets do not match")
