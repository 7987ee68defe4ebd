"""Words that mean nothing."""

import polars as pl
import pytest
from segrec.reading.words import BLANKS, is_missing, missing_words


@pytest.mark.parametrize("text", ["", "  ", "NULL", " NaN ", "None", "\\N", "N/A", "<NA>", "NaT", "-", "nil", "#N/A"])
def test_words_for_nothing_are_missing(text: str) -> None:
    assert is_missing(text)


@pytest.mark.parametrize("text", ["0", "--", "nobody", "N", "n.a.", "null1", "\u200b"])
def test_other_texts_are_real(text: str) -> None:
    assert not is_missing(text)


def test_an_own_list_replaces_the_words_but_an_empty_text_stays_missing() -> None:
    words = missing_words(["Guest ", "0"])
    assert [is_missing(text, words) for text in ("guest", " GUEST", "0", "null", " ")] == [
        True,
        True,
        True,
        False,
        True,
    ]
    assert [is_missing(text, missing_words([])) for text in ("null", "")] == [False, True]


def test_blanks_are_those_that_polars_cuts_off() -> None:
    characters = [chr(code) for code in range(1, 0x3100)]
    cut = pl.Series(characters).str.strip_chars() == ""
    assert {character for character, is_cut in zip(characters, cut, strict=True) if is_cut} == set(BLANKS)
