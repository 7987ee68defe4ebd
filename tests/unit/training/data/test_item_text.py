"""Vectors of items' texts: what is read, by which model, what is kept, and bad vector files by their first row."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from segrec.reading.words import missing_words

from tests.support.logs import write_planted
from training.config import Config, Text
from training.data import text_encoders
from training.data.item_text import VECTORS, VectorFile, read_item_text, texts_of
from training.data.prepare import PrepareResult, prepare
from training.data.text_encoders import ENGLISH, MULTILINGUAL, choose_model, encode_texts
from training.errors import ConfigError, LogError
from training.runs import Run


def items(**columns: Sequence[object]) -> pl.DataFrame:
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "item_id": pl.String,
        "title": pl.String,
        "category": pl.List(pl.String),
        "description": pl.String,
    }
    return pl.DataFrame(columns, schema)


def written(directory: Path, item_ids: Sequence[str | None], vectors: Sequence[object]) -> Path:
    path = directory / "vectors.parquet"
    pl.DataFrame({"item_id": item_ids, "vector": pl.Series(vectors, dtype=pl.List(pl.Float64))}).write_parquet(path)
    return path


def prepared(directory: Path, text: Text, table: pl.DataFrame | None = None) -> PrepareResult:
    events, path, _ = write_planted(directory, users=20)
    if table is not None:
        table.write_parquet(path)
    return prepare(Run.create(directory / "runs"), events, path, None, Config(text=text))


def test_a_text_is_title_categories_and_description() -> None:
    table = items(
        item_id=["a", "b", "c", "d"],
        title=["Wine", None, None, "Hat"],
        category=[["Drinks", "Red"], ["Toys"], ["Tools"], []],
        description=["Dry.", None, "A saw.", None],
    )
    assert texts_of(table).to_list() == ["Wine. Drinks, Red. Dry.", None, "Tools. A saw.", "Hat"]


@pytest.mark.parametrize(
    ("titles", "model"),
    [
        (["Toy Story (1995)", "Les Misérables", *["The English Patient, a film of 1996"] * 40], ENGLISH),
        (["红色连衣裙", "手机"], MULTILINGUAL),
        (["Müsli mit Früchten", "Käse"], MULTILINGUAL),
    ],
)
def test_the_letters_choose_the_model(titles: list[str], model: str) -> None:
    assert choose_model(pl.Series(titles)) == model


def test_an_english_model_from_a_package() -> None:
    titles = ["red summer dress", "a dress for the summer, red", "usb phone charger"]
    vectors = encode_texts(ENGLISH, titles)
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > likeness[0, 2] + 0.3


def test_a_multilingual_model_from_a_package_and_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = ["红色连衣裙 夏季", "女式裙子", "手机充电器"]
    told: list[tuple[int, int]] = []
    vectors = encode_texts(MULTILINGUAL, titles, tmp_path, lambda _, done, total: told.append((done, total)))
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > likeness[0, 2]
    assert told[-1] == (3, 3)

    def unneeded(name: str) -> text_encoders.Encode:
        raise AssertionError(f"{name} is loaded again")

    monkeypatch.setattr(text_encoders, "_load", unneeded)
    np.testing.assert_array_equal(encode_texts(MULTILINGUAL, titles[::-1], tmp_path), vectors[::-1])
    with pytest.raises(AssertionError, match="loaded again"):
        encode_texts(MULTILINGUAL, ["something new"], tmp_path)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"directory .*nowhere, which does not exist"):
        encode_texts(str(tmp_path / "nowhere"), ["a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        encode_texts(str(tmp_path / "empty"), ["a"])


@pytest.mark.parametrize(
    ("item_ids", "vectors", "problem"),
    [
        (["a", "b", "c"], [[1.0, 2.0], [1.0], [1.0]], r"row 2: .*another length.*`b`"),
        (["a", "b"], [[1.0, 2.0], [1.0, float("nan")]], r"row 2: .*not finite.*`b`"),
        (["a", "b"], [[1.0, None], [1.0, 2.0]], r"row 1: .*not finite.*`a`"),
        (["a", "b"], [[1.0, 2.0], None], r"row 2: .*no vector.*`b`"),
        (["a", None], [[1.0], [2.0]], r"row 2: .*no item id"),
        (["a", "a"], [[1.0], [2.0]], r"row 2: .*repeats.*`a`"),
        ([], [], "no rows"),
    ],
)
def test_a_bad_vector_is_named(tmp_path: Path, item_ids: list[str | None], vectors: list[object], problem: str) -> None:
    with pytest.raises(LogError, match=problem):
        VectorFile.read(written(tmp_path, item_ids, vectors))


def test_ids_of_vectors_are_read_by_the_rule_of_logs(tmp_path: Path) -> None:
    path = tmp_path / "vectors.parquet"
    pl.DataFrame({"item_id": [7.0, 1e-7], "vector": [[1.0], [2.0]]}).write_parquet(path)
    with pytest.raises(LogError, match=r"row 2: .*holds no id"):
        VectorFile.read(path)
    pl.DataFrame({"item_id": ["7.0", "NULL"], "vector": [[1.0], [2.0]]}).write_parquet(path)
    with pytest.raises(LogError, match=r"row 2: .*no item id"):
        VectorFile.read(path)
    assert VectorFile.read(path, missing_words([])).item_ids.to_list() == ["7", "NULL"]


def test_a_vector_file_needs_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "vectors.parquet"
    pl.DataFrame({"vector": [[1.0]]}).write_parquet(path)
    with pytest.raises(LogError, match="item_id"):
        VectorFile.read(path)
    pl.DataFrame({"item_id": ["a"], "vector": [1.0]}).write_parquet(path)
    with pytest.raises(LogError, match="one column of lists"):
        VectorFile.read(path)
    with pytest.raises(LogError, match="Parquet"):
        VectorFile.read(tmp_path / "vectors.csv")


def test_vectors_of_a_file_bring_in_items_that_nobody_touched(tmp_path: Path) -> None:
    new = items(item_id=["new", "untold"], title=["New", None], category=[[], []], description=[None, None])
    events, path, _ = write_planted(tmp_path, users=20)
    pl.concat([pl.read_parquet(path), new], how="diagonal").write_parquet(path)
    vectors = written(tmp_path, ["new", "i00001"], [[3.0, 4.0], [0.0, -2.0]])
    result = prepare(Run.create(tmp_path / "runs"), events, path, None, Config(text=Text(vectors=vectors)))
    catalogue = pl.read_parquet(result.directory / "items.parquet")
    assert catalogue["item_id"][-1] == "new"
    assert len(catalogue) == result.items == 41
    assert catalogue["event_count"][-1] == 0
    text = read_item_text(result.directory)
    assert text is not None
    np.testing.assert_allclose(text.vectors[-1], [0.6, 0.8])
    place = catalogue["item_id"].to_list().index("i00001")
    np.testing.assert_allclose(text.vectors[place], [0, -1])
    assert np.count_nonzero(text.vectors.any(1)) == 2
    assert any("1 items without events" in note for note in result.account.notes)
    with pytest.raises(LogError, match=r"row 2: item `stranger` is in neither"):
        prepared(tmp_path, Text(vectors=written(tmp_path, ["i00001", "stranger"], [[1.0], [1.0]])))


def test_without_text_items_that_nobody_touched_stay_out(tmp_path: Path) -> None:
    events, path, _ = write_planted(tmp_path, users=20)
    new = items(item_id=["new"], title=["New"], category=[[]], description=[None])
    pl.concat([pl.read_parquet(path), new], how="diagonal").write_parquet(path)
    result = prepare(Run.create(tmp_path / "runs"), events, path, None, Config())
    assert result.items == 40
    assert read_item_text(result.directory) is None
    assert not (result.directory / VECTORS).exists()


def test_a_model_without_texts_is_an_error(tmp_path: Path) -> None:
    table = items(item_id=["i00001"], title=[None], category=[["group"]], description=[None])
    with pytest.raises(LogError, match="no item has a title"):
        prepared(tmp_path, Text(model=MULTILINGUAL), table)
