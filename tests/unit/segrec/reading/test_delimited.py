"""Rows of delimited text."""

import pytest
from segrec.reading.delimited import LONGEST_FIELD, Delimited, delimiter_of
from segrec.reading.refusals import Refused

Rows = list[tuple[int, list[str]]]


def read(text: str, **options: object) -> tuple[list[str], Rows]:
    table = Delimited(text.splitlines(keepends=True), "log.csv", **options)  # type: ignore[arg-type]
    return table.names, list(table.rows())


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a,b\n1,2\n3,4\n", [(2, ["1", "2"]), (3, ["3", "4"])]),
        ("a,b\r\n1,2\r\n", [(2, ["1", "2"])]),
        ("a,b\r1,2\r3,4", [(2, ["1", "2"]), (3, ["3", "4"])]),
        ("\n\na,b\n\n1,2\n  \n3,4\n\n", [(5, ["1", "2"]), (7, ["3", "4"])]),
        ('a,b\n12" vinyl,7" single\n', [(2, ['12" vinyl', '7" single'])]),
        ('a,b\n"12"" vinyl","x,y"\n', [(2, ['12" vinyl', "x,y"])]),
        ('a,b\n"two\nlines",2\n3,4\n', [(2, ["two\nlines", "2"]), (4, ["3", "4"])]),
        ('a,b\n"two\rlines",2\n', [(2, ["two\rlines", "2"])]),
        ('a,b\n"12" vinyl,2\n3,4\n', [(2, ["12 vinyl", "2"]), (3, ["3", "4"])]),
        ('a,b\n1,"12" vinyl', [(2, ["1", "12 vinyl"])]),
        ("a,b\n1\n", [(2, ["1", ""])]),
        ("a,b\n1,2,,\n", [(2, ["1", "2"])]),
        ("a,b\n,\n", [(2, ["", ""])]),
        ("a\tb\n\t\n", [(2, ["", ""])]),
        ("sep=;\na;b\n1;2\n", [(3, ["1", "2"])]),
        ('"sep=^"\r\na^b\r\n1^2\r\n', [(3, ["1", "2"])]),
        ("a,b\n1,x\0y\n", [(2, ["1", "x\0y"])]),
    ],
)
def test_rows_carry_their_lines(text: str, rows: Rows) -> None:
    assert read(text) == (["a", "b"], rows)


def test_names_are_trimmed() -> None:
    assert read('\ufeff a , "b ",\n')[0] == ["a", '"b "', ""]


def test_without_a_header_columns_are_numbered() -> None:
    assert read('"x\ny",2\n3,4\n', has_header=False) == (["1", "2"], [(1, ["x\ny", "2"]), (3, ["3", "4"])])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b\n1,2\n"12 inch,3\n4,5\n6,7\n', r"line 3: a field begins with a double quote that is never closed"),
        ('a,b\n1,"12 inch', r"line 2: a field begins"),
        ('a,b\n1,"12 inch\n3,4\n5,"7 inch\n7,8\n', r"line 2: a field begins"),
        ('a,b\n1,"12 inch\n3,4\n5,"7 inch"\n', r"line 2: a field begins"),
        ('a,b\n"x\ny","12 inch\n3,4\n', r"line 3: a field begins"),
        ('a,b\n1,"a"b,"c\n3,4\n', r"line 2: a field begins"),
        (f'a,b\n1,2\n3,"{"x" * 90}\n' + f"4,{'5' * 1000}\n" * 1100, r"line 3: a field begins"),
        (f"a,b\n1,{'x' * (LONGEST_FIELD + 1)}\n", r"line 2: a field is longer than 1,048,576 characters"),
        ("a,b\n1,2\n1,2,3\n", r"line 3: the row has 3 fields, but there are 2 columns; put .* delimiter `,` into"),
        ("a\tb\n1\t2\t3\n", r"line 2: .* delimiter tab"),
        ("", "log.csv has no rows"),
        ("\n \n", "log.csv has no rows"),
    ],
)
def test_rows_that_cannot_be_read_are_refused_with_their_line(text: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        read(text)


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ("user_id,item_id", ","),
        ("user_id;item_id;price, EUR", ";"),
        ("user_id,item_id,a|b|c|d", ","),
        ("userId\titemId", "\t"),
        ("用户id|商品id", "|"),
        ('"a;b";"c,d";user_id', ";"),
        ("a,b;c;d", ","),
        ("a;b", ";"),
        ("user_id", ","),
    ],
)
def test_the_header_shows_the_delimiter(header: str, delimiter: str) -> None:
    assert delimiter_of(header) == delimiter
