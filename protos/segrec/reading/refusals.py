"""The errors of reading: one value that cannot be read, and one file that cannot be read."""

_SHOWN_CHARACTERS = 40


class Unreadable(ValueError):
    """A value that is no id, time or number; `str(error)` ends a sentence that begins with the column's name."""


class OutOfRange(Unreadable):
    """A time that can be read but cannot be meant: before 1970, after 2200, or a number too small for a time."""


class Refused(ValueError):
    """A file that cannot be read; `str(error)` is one sentence that names the file, the line if known, and a remedy."""


def shown(value: object) -> str:
    """The beginning of a value for a message: in quotes, on one line, control characters as escapes."""
    text = repr(value if isinstance(value, str) else str(value))
    return text if len(text) <= _SHOWN_CHARACTERS + 2 else f"{text[:_SHOWN_CHARACTERS]}…{text[0]}"
