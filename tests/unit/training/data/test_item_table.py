"""Item and user tables."""

from pathlib import Path

import pytest

from training.config import ItemColumns, UserColumns
from training.data.item_table import read_items, read_users
from training.errors import LogError


def written(tmp_path: Path, text: str, name: str = "items.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_items_with_one_category_column_or_several(tmp_path: Path) -> None:
    path = written(tmp_path, "movieId,title,genres,kind\n1, Up ,Animation|Drama,film\n2,,,\n1,again,x,y\n")
    one = read_items(path, ItemColumns(), tmp_path)
    assert one.rows() == [("1", "Up", ["Animation", "Drama"], None), ("2", None, [], None)]
    several = read_items(path, ItemColumns(category=("kind", "genres")), tmp_path)
    assert several["category"].to_list() == [["film", "Animation", "Drama"], []]
    with pytest.raises(LogError, match=r"no column `sort`"):
        read_items(path, ItemColumns(category=("sort",)), tmp_path)


@pytest.mark.parametrize(
    ("header", "title", "description"),
    [("item_id,title,Description", "b", "c"), ("item_id,name,简介", "b", "c"), ("item_id,Description,x", "b", None)],
)
def test_a_description_alone_is_the_title(tmp_path: Path, header: str, title: str, description: str | None) -> None:
    table = read_items(written(tmp_path, f"{header}\na,b,c\n"), ItemColumns(), tmp_path)
    assert table.select("title", "description").row(0) == (title, description)


def test_users_keep_their_labels(tmp_path: Path) -> None:
    path = written(tmp_path, "用户ID,age,city\na,30,X\n a ,31,Y\nb,,\n", "users.csv")
    users = read_users(path, UserColumns(), tmp_path)
    assert users.columns == ["user_id", "age", "city"]
    assert users["user_id"].to_list() == ["a", "b"]
