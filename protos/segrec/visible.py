"""Text of files and of other programs, as it may be shown on a terminal, in a log and in a page."""

import re

_BREAKS = "\n"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, change colours, end lines or turn the direction of writing, and lone surrogates."""
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str) -> str:
    r"""`text` on one line, with escapes such as `\u001b` and `\n` in place of control characters.

    The escapes are those of JSON, so that a line of JSON stays the same value.
    """
    return _CONTROL.sub(_escaped, text)


def visible_lines(text: str) -> str:
    """`text` as `visible` shows it, but with its own line breaks."""
    return _BREAKS.join(map(visible, text.split(_BREAKS)))


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    return _SHORT.get(character) or f"\\u{ord(character):04x}"
