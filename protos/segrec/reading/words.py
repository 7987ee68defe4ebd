"""Words that mean nothing: how tools write a missing value as text."""

from collections.abc import Collection, Iterable

BLANKS = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""Characters that are cut off at both ends of every value: Unicode's White_Space, as Polars' `strip_chars()` cuts."""

MISSING_WORDS = frozenset(
    ("", "null", "nan", "none", "na", "n/a", "<na>", "nat", "\\n", "-", "nil", "undefined", "#n/a")
)
r"""Texts that mean a missing value, in lower case without blanks around. `\n` is MySQL's backslash and N."""


def missing_words(words: Iterable[str]) -> frozenset[str]:
    """A person's own list of words as `is_missing` compares them; an empty text is missing with any list."""
    return frozenset(word.strip(BLANKS).lower() for word in words) | {""}


def is_missing(text: str, words: Collection[str] = MISSING_WORDS) -> bool:
    """Whether the text means a missing value; `words` come from `missing_words`."""
    return text.strip(BLANKS).lower() in words
