"""Item and user tables."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from segrec.reading.words import missing_words

from training.config import ItemColumns, UserColumns
from training.data.account import TableRows
from training.data.reading.item_table import IdTable, read_items, read_users
from training.errors import LogError


def written(tmp_path: Path, text: str, name: str = "items.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def items(tmp_path: Path, text: str, **columns: object) -> IdTable:
    return read_items(written(tmp_path, text), ItemColumns.model_validate(columns), tmp_path)


def parquet(tmp_path: Path, **columns: object) -> IdTable:
    path = tmp_path / "items.parquet"
    pl.DataFrame(columns).write_parquet(path)
    return read_items(path, ItemColumns(), tmp_path)


def categories_of(table: IdTable) -> list[list[str]]:
    return table.rows["category"].to_list()


def test_items_with_one_category_column_or_several(tmp_path: Path) -> None:
    path = written(tmp_path, "movieId,title,genres,kind\n1, Up ,Animation|Drama,film\n2,,,\n3,a,x,x\n")
    one = read_items(path, ItemColumns(), tmp_path)
    assert one.rows.rows() == [
        ("1", "Up", ["Animation", "Drama"], None),
        ("2", None, [], None),
        ("3", "a", ["x"], None),
    ]
    assert one.notes == ()
    several = read_items(path, ItemColumns(category=("kind", "genres")), tmp_path)
    assert categories_of(several) == [["film", "Animation", "Drama"], [], ["x"]]
    with pytest.raises(LogError, match=r"no column `sort`"):
        read_items(path, ItemColumns(category=("sort",)), tmp_path)


def test_categories_get_names_in_words(tmp_path: Path) -> None:
    text, names = "item_id,category\n1,Drug gm|Eggs\n2,Pharma\n", {"Drug gm": "Drugstore", "Pharma": "Drugstore"}
    named = items(tmp_path, text, category_names=names)
    assert categories_of(named) == [["Drugstore", "Eggs"], ["Drugstore"]]
    assert named.notes == ()
    table = written(tmp_path, "name,category\nDrugstore,Drug gm\n,Eggs\nBooks,Bk\n", "names.csv")
    by_table = items(tmp_path, text, category_names=str(table))
    assert categories_of(by_table) == [["Drugstore", "Eggs"], ["Pharma"]]
    assert by_table.notes == ("1 of the [items] category_names are no categories of an item: `Bk`",)


def test_a_table_of_category_names_must_be_clear(tmp_path: Path) -> None:
    twice = written(tmp_path, "category,name\na,b\na,c\n", "twice.csv")
    with pytest.raises(LogError, match="gives the category `a` two names"):
        items(tmp_path, "item_id\n1\n", category_names=str(twice))
    other = written(tmp_path, "code,name\na,b\n", "other.csv")
    with pytest.raises(LogError, match="lacks the column category"):
        items(tmp_path, "item_id\n1\n", category_names=str(other))


def test_the_first_value_of_each_column_counts_and_categories_are_joined(tmp_path: Path) -> None:
    rows = ["102,,,", "103,Lamp,Light,", "102,Chair,Home,", "102,Stool,Home|Sale,d", "103,Lamp,,"]
    table = items(tmp_path, "\n".join(["item_id,title,category,description", *rows, ""]))
    assert table.rows.rows() == [("102", "Chair", ["Home", "Sale"], "d"), ("103", "Lamp", ["Light"], None)]
    assert table.notes == (
        "2 ids are in several rows of the item table (`102`, `103`): the first value of each column counts, categories "
        "are joined; they differ: 1 in title",
    )


def test_ids_are_read_by_the_rule_of_logs(tmp_path: Path) -> None:
    table = items(tmp_path, "item_id,title\n 71053.0 ,a\n007,b\nNULL,c\n,d\n")
    assert table.rows["item_id"].to_list() == ["71053", "007"]
    assert table.notes == ("2 rows of items.csv have no item_id and are left out (row 3, 4)",)
    assert parquet(tmp_path, item_id=[71053.0, None], title=["a", "b"]).rows["item_id"].to_list() == ["71053"]


def test_columns_may_have_any_names(tmp_path: Path) -> None:
    text = "sku,item_id,row,category\n1,Lamp,Light,x\n2,Chair,Home,y\n"
    table = items(tmp_path, text, item_id="sku", title="item_id", category="row")
    assert table.rows.rows() == [("1", "Lamp", ["Light"], None), ("2", "Chair", ["Home"], None)]


def test_a_recognised_column_can_be_switched_off(tmp_path: Path) -> None:
    text = "item_id,title,category,description\n1,Lamp,Light,warm\n"
    assert items(tmp_path, text).rows.rows() == [("1", "Lamp", ["Light"], "warm")]
    assert items(tmp_path, text, title=False).rows.rows() == [("1", None, ["Light"], "warm")]
    assert items(tmp_path, text, category=False).rows.rows() == [("1", "Lamp", [], "warm")]
    assert items(tmp_path, text, description=False).rows.rows() == [("1", "Lamp", ["Light"], None)]
    ambiguous = "item_id,title,name\n1,Lamp,x\n1,,y\n"
    assert items(tmp_path, ambiguous, title=False).rows.rows() == [("1", None, [], None)]


def test_words_for_nothing_are_neither_title_nor_category(tmp_path: Path) -> None:
    text = "item_id,title,category\n1,nan,NULL\n2,None,Home|nan\n3,\\N,<NA>\n4,None of us,NaN cake\n5,,\n"
    table = items(tmp_path, text)
    assert table.rows["title"].to_list() == [None, None, None, "None of us", None]
    assert categories_of(table) == [[], ["Home"], [], ["NaN cake"], []]
    assert table.notes == ("3 titles of the item table are words for nothing, such as `nan`: they are missing",)
    own = read_items(tmp_path / "items.csv", ItemColumns(), tmp_path, missing_words(["\\N"]))
    assert own.rows["title"].to_list() == ["nan", "None", None, "None of us", None]


@pytest.mark.parametrize(
    "written_as", ["['Home', 'Light']", '["Home", "Light"]', '[["Home"], ["Light"]]', "['Home' 'Light']"]
)
def test_categories_as_texts_of_lists(tmp_path: Path, written_as: str) -> None:
    quoted = written_as.replace('"', '""')
    table = items(tmp_path, f'item_id,title,category\n1,a,"{quoted}"\n2,b,[]\n3,c,Home|Light\n4,d,[Sale]\n5,e,[1.0]\n')
    assert categories_of(table) == [["Home", "Light"], [], ["Home", "Light"], ["[Sale]"], ["1"]]


@pytest.mark.parametrize(
    ("lists", "read"),
    [
        ([[["Home", "Light"]], [["Sofa"], ["Home", None]], [[]], None], [["Home", "Light"], ["Sofa", "Home"], [], []]),
        ([["Home ", "nan"], ["a|b"], [], None], [["Home"], ["a|b"], [], []]),
        ([[1.0, 2.5], [3.0], [], None], [["1", "2.5"], ["3"], [], []]),
        ([["['Home', 'Light']"], ["Home"], [], None], [["Home", "Light"], ["Home"], [], []]),
    ],
)
def test_categories_as_lists(tmp_path: Path, lists: list[object], read: list[list[str]]) -> None:
    assert categories_of(parquet(tmp_path, item_id=["1", "2", "3", "4"], category=lists)) == read


def test_arrays_of_categories(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    arrays = pl.Series([["Home", "Light"], ["Sofa", None]], dtype=pl.Array(pl.String, 2))
    pl.DataFrame({"item_id": [1, 2], "category": arrays}).write_parquet(path)
    assert categories_of(read_items(path, ItemColumns(), tmp_path)) == [["Home", "Light"], ["Sofa"]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"category": [[{"name": "Home"}]]}, r"column `category` of .*items\.parquet holds objects"),
        ({"category": [True]}, r"column `category` .* holds true and false"),
        ({"category": ["Home", "[{'name': 'Home'}]"]}, r"`category` \(category\) of .*, row 2, looks like a list"),
        ({"category": ["['Home', 'Lig"]}, r"row 1, looks like a list that is cut off or wrong: `\['Home', 'Lig`"),
        ({"title": [["a"]]}, r"column `title` of .* holds lists"),
        ({"item_id": [["a"]]}, r"column `item_id` of .* holds lists"),
        ({"item_id": [1e17]}, r"`item_id` \(item_id\) of .* floats too large .* in 1 rows, the first in row 1; save"),
        ({"item_id": [b"\xff"]}, r"bytes that are no UTF-8 text in 1 rows"),
    ],
)
def test_faults_name_the_column_and_the_row(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    rows = len(next(iter(columns.values())))
    with pytest.raises(LogError, match=message):
        parquet(tmp_path, **({"item_id": list("ab"[:rows])} | columns))


@pytest.mark.parametrize(
    ("header", "title", "description"),
    [("item_id,title,Description", "b", "c"), ("item_id,name,简介", "b", "c"), ("item_id,Description,x", "b", None)],
)
def test_a_description_alone_is_the_title(tmp_path: Path, header: str, title: str, description: str | None) -> None:
    assert items(tmp_path, f"{header}\na,b,c\n").rows.select("title", "description").row(0) == (title, description)


def test_users_keep_their_labels(tmp_path: Path) -> None:
    path = written(tmp_path, "用户ID,age,city\na,,NULL\n a ,31,Y\nb,,\n7.0,30, Z \n", "users.csv")
    users = read_users(path, UserColumns(), tmp_path)
    assert users.rows.rows() == [("a", "31", "Y"), ("b", None, None), ("7", "30", "Z")]
    assert users.rows.columns == ["user_id", "age", "city"]
    assert users.notes == ("1 ids are in several rows of the user table (`a`): the first value of each column counts",)


@pytest.mark.parametrize("name", ["users.csv", "users.ndjson"])
def test_every_row_of_a_table_is_in_its_account(tmp_path: Path, name: str) -> None:
    ids = ["a", *[""] * 7, "b", "a"]
    lines = ["user_id,city\n", *(f"{user},X\n" for user in ids)]
    if name.endswith("ndjson"):
        lines = [json.dumps({"user_id": user, "city": "X"}) + "\n" for user in ids]
    users = read_users(written(tmp_path, "".join(lines), name), UserColumns(), tmp_path)
    named = {"file": name, "rows_in": 10, "rows_dropped": 7, "first_rows": (2, 3, 4, 5, 6), "rows_merged": 1, "ids": 2}
    assert users.account.model_dump() == named
    assert users.notes[0] == f"7 rows of {name} have no user_id and are left out (row 2, 3, 4, 5, 6, …)"
    with pytest.raises(ValueError, match="does not add up"):
        TableRows.model_validate(named | {"ids": 3})


@pytest.mark.parametrize("read", [read_items, read_users])
def test_a_table_of_which_the_parser_loses_rows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[..., IdTable]
) -> None:
    path = written(tmp_path, "item_id,user_id\na,a\nb,b\n")
    monkeypatch.setattr("training.data.reading.tables.count_rows", lambda *_: (4, False))
    columns = ItemColumns() if read is read_items else UserColumns()
    with pytest.raises(LogError, match=r"items.csv holds 3 rows, but 2 were read: a fault of the reader"):
        read(path, columns, tmp_path)


def test_a_second_column_of_ids_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, "user_id,uid,city\n1,a,X\n", "users.csv")
    users = read_users(path, UserColumns(user_id="uid"), tmp_path)
    assert users.rows.rows() == [("a", "X")]
    assert users.notes == ("the column `user_id` of users.csv is no label: the ids are in `uid`",)


def test_a_column_of_groups_is_read_where_it_is_named(tmp_path: Path) -> None:
    text = "item_id,title,group,model\n1,a,x,m\n2,b,, m \n3,c,x,\n"
    assert "group" not in items(tmp_path, text).rows.columns, "only a column that is named"
    assert items(tmp_path, text, group="model").rows["group"].to_list() == ["m", "m", None]
    with pytest.raises(LogError, match="no column `size`"):
        items(tmp_path, text, group="size")
