import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from server.core.errors import DamagedRelease
from server.core.hash_index import hashes_of
from server.core.release import ITEM_HASH, SEARCH_LISTS, TREND, Confidence
from server.core.repository.read import read_release, record_of
from tests.support.releases import CONFIDENCE, MIGRATION_OF_FOUR, encode_with_onnx, tiny_release

SEARCH_ARRAYS = {
    "centroids": np.zeros((7, 16), np.float32),
    "list_of_item": np.zeros(50, np.int32),
    "probes": 1,
    "recall": 1.0,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_release(tmp_path_factory.mktemp("repository"), 7)


@pytest.fixture
def directory(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "7"))


def rewrite_manifest(directory: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_a_complete_release_is_read(whole: Path) -> None:
    release = read_release(whole)
    release.warm()
    assert release.number == 7
    assert release.item_embeddings.shape == (50, 16)
    assert release.vocabulary["item-003"] == 3
    assert release.category_rows["category-2"].tolist() == list(range(1, 50, 4))
    golden = release.manifest.golden
    assert golden.difference(encode_with_onnx(whole / "model.onnx", golden.inputs())) < 1e-6


def test_golden_differences_show_shape_and_nan(whole: Path) -> None:
    golden = read_release(whole).manifest.golden
    right = np.array(golden.user_embedding, np.float32)
    assert golden.difference(right[:1]) == np.inf
    assert golden.difference(np.full_like(right, np.nan)) == np.inf
    assert golden.difference(right + np.float32(0.5)) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["model.onnx", "items.parquet", "centroids.npy"])
def test_a_changed_byte_gives_an_error_with_the_file_name(directory: Path, name: str) -> None:
    data = bytearray((directory / name).read_bytes())
    data[len(data) // 2] ^= 1
    (directory / name).write_bytes(data)
    with pytest.raises(DamagedRelease, match=f"{name} is not the file that was published"):
        read_release(directory)


def test_a_missing_file_gives_an_error_with_its_name(directory: Path) -> None:
    (directory / "segments.json").unlink()
    with pytest.raises(DamagedRelease, match=r"lacks segments\.json"):
        read_release(directory)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"probes": 1, "recall": 1.0}, "centroids"),
        (SEARCH_ARRAYS | {"centroids": np.zeros((7, 15), np.float32)}, "centroids of the search lists must be float32"),
        (SEARCH_ARRAYS | {"list_of_item": np.full(50, 7, np.int32)}, "must have one of the 7 lists"),
        (SEARCH_ARRAYS | {"list_of_item": np.array([{}] * 50)}, "Object arrays cannot be loaded"),
    ],
    ids=["lacking", "centroids", "lists", "objects"],
)
def test_damaged_search_lists_are_refused(directory: Path, arrays: dict[str, Any], problem: str) -> None:
    np.savez(directory / SEARCH_LISTS, **arrays)
    record = record_of(directory / SEARCH_LISTS).model_dump()
    rewrite_manifest(directory, lambda manifest: manifest["files"].update({SEARCH_LISTS: record}))
    with pytest.raises(DamagedRelease, match=problem):
        read_release(directory)


def test_without_a_manifest_the_copy_is_incomplete(directory: Path) -> None:
    (directory / "manifest.json").unlink()
    with pytest.raises(DamagedRelease, match="copy is not complete"):
        read_release(directory)


def test_a_directory_of_another_number_is_refused(directory: Path) -> None:
    with pytest.raises(DamagedRelease, match="its directory is named 8"):
        read_release(directory.rename(directory.parent / "8"))


def test_another_schema_version_is_refused(directory: Path) -> None:
    rewrite_manifest(directory, lambda manifest: manifest.update(schema_version=99))
    with pytest.raises(DamagedRelease, match=r"schema version 99 and this build reads 2: publish the run again"):
        read_release(directory)


def test_another_schema_is_refused_before_its_keys_are_read(directory: Path) -> None:
    (directory / "manifest.json").write_text('{"schema_version": 3, "surprise": 1}')
    with pytest.raises(DamagedRelease, match="schema version 3 and this build reads 2"):
        read_release(directory)


def test_a_manifest_without_a_schema_version_is_refused(directory: Path) -> None:
    rewrite_manifest(directory, lambda manifest: manifest.pop("schema_version"))
    with pytest.raises(DamagedRelease, match="schema_version: Field required"):
        read_release(directory)


def test_an_unknown_key_is_refused(directory: Path) -> None:
    rewrite_manifest(directory, lambda manifest: manifest.update(surprise=1))
    with pytest.raises(DamagedRelease, match="surprise"):
        read_release(directory)


def test_a_manifest_that_names_a_path_outside_is_refused(directory: Path) -> None:
    record = record_of(directory / "model.onnx").model_dump()
    rewrite_manifest(directory, lambda manifest: manifest["files"].update({"../7/model.onnx": record}))
    with pytest.raises(DamagedRelease, match="lacks"):
        read_release(directory)


@pytest.mark.parametrize("rows", [[], [[1.0, 2.0]] * 4])
def test_golden_embeddings_too_short_to_rank_items_are_refused(directory: Path, rows: list[list[float]]) -> None:
    rewrite_manifest(directory, lambda manifest: manifest["golden"].update(user_embedding=rows))
    with pytest.raises(DamagedRelease, match="golden embeddings must be rows of 16 numbers or more"):
        read_release(directory)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 16), np.float32), "centroids.npy shape"),
        (np.full((4, 16), np.nan, np.float32), "finite float32"),
        (np.zeros((4, 16), np.float64), "finite float32"),
    ],
)
def test_centroids_of_another_shape_or_type_are_refused(
    directory: Path,
    array: np.ndarray,
    message: str,
) -> None:
    path = directory / "centroids.npy"
    np.save(path, array)
    rewrite_manifest(directory, lambda manifest: manifest["files"].update({path.name: record_of(path).model_dump()}))
    with pytest.raises(DamagedRelease, match=message):
        read_release(directory)


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_a_trend_that_is_not_finite_is_refused(directory: Path, bad: float | None) -> None:
    path = directory / "items.parquet"
    items = pl.read_parquet(path)
    items.with_columns(pl.Series(TREND, [bad] + [0.0] * (len(items) - 1))).write_parquet(path)
    rewrite_manifest(directory, lambda manifest: manifest["files"].update({path.name: record_of(path).model_dump()}))
    with pytest.raises(DamagedRelease, match=r"trend of items\.parquet must hold finite float32 numbers"):
        read_release(directory)


def test_arrays_that_need_pickle_are_refused(directory: Path) -> None:
    path = directory / "centroids.npy"
    np.save(path, np.array([{"not": "numbers"}], dtype=object), allow_pickle=True)
    rewrite_manifest(directory, lambda manifest: manifest["files"].update({path.name: record_of(path).model_dump()}))
    with pytest.raises(DamagedRelease, match="cannot be read"):
        read_release(directory)


def rewrite_items(directory: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    path = directory / "items.parquet"
    change(pl.read_parquet(path)).write_parquet(path)
    rewrite_manifest(directory, lambda manifest: manifest["files"].update({path.name: record_of(path).model_dump()}))


def test_items_are_found_by_the_hashes_of_their_ids(whole: Path) -> None:
    asked = hashes_of(["item-003", "unknown", "item-050"])
    assert read_release(whole).item_index.find(asked).tolist() == [3, 0, 50]


@pytest.mark.parametrize("column", [ITEM_HASH, "title", "popularity"])
def test_a_catalogue_without_one_of_its_columns_is_refused(directory: Path, column: str) -> None:
    rewrite_items(directory, lambda items: items.drop(column))
    with pytest.raises(DamagedRelease, match=f"items.parquet lacks {column}: publish the run again"):
        read_release(directory)


HASHES_THAT_ARE_NOT = [
    pl.col(ITEM_HASH) + 1,
    pl.col(ITEM_HASH).cast(pl.Float64),
    pl.lit(None),
    pl.col(ITEM_HASH).shift(1),
]


@pytest.mark.parametrize("hashes", HASHES_THAT_ARE_NOT)
def test_other_hashes_of_item_ids_are_refused(directory: Path, hashes: pl.Expr) -> None:
    rewrite_items(directory, lambda items: items.with_columns(hashes.alias(ITEM_HASH)))
    with pytest.raises(DamagedRelease, match=r"items\.parquet has wrong values of item_hash"):
        read_release(directory)


@pytest.mark.parametrize("lists", ["top_items", "particular_items"])
def test_an_item_of_a_segment_that_the_catalogue_lacks_is_refused(directory: Path, lists: str) -> None:
    path = directory / "segments.json"
    profiles = json.loads(path.read_bytes())
    profiles[1][lists][0]["item_id"] = "elsewhere"
    path.write_text(json.dumps(profiles))
    rewrite_manifest(directory, lambda text: text["files"].update({path.name: record_of(path).model_dump()}))
    with pytest.raises(DamagedRelease, match=r"segments\.json has an item that is not in the catalogue: 'elsewhere'"):
        read_release(directory)


def test_a_first_release_of_few_users_has_no_confidence_and_no_migration(whole: Path) -> None:
    release = read_release(whole)
    assert release.manifest.confidence is None
    assert release.migration is None


def test_confidence_and_migration_are_read_back(tmp_path: Path) -> None:
    release = read_release(tiny_release(tmp_path, confidence=CONFIDENCE, migration=MIGRATION_OF_FOUR))
    assert release.manifest.confidence == CONFIDENCE
    assert release.migration == MIGRATION_OF_FOUR


def test_confidence_is_linear_between_its_knots_and_flat_outside() -> None:
    curve = Confidence(margins=(0.2, 0.6), stays=(0.5, 0.9), min_confidence=0.5, min_history=3)
    np.testing.assert_allclose(curve.at(np.array([0.0, 0.2, 0.4, 0.6, 1.0])), [0.5, 0.5, 0.7, 0.9, 0.9])


@pytest.mark.parametrize(
    ("margins", "stays", "message"),
    [
        ([0.0, 1.0], [0.5], "there are 2 margins and 1 stays"),
        ([0.5, 0.1], [0.5, 0.6], "margins must be ascending"),
        ([0.0, 1.0], [0.6, 0.5], "stays must be ascending"),
        ([0.0, 1.0], [0.6, 1.5], "stays must be ascending numbers from 0 to 1"),
    ],
)
def test_a_confidence_that_is_no_curve_is_refused(
    directory: Path, margins: list[float], stays: list[float], message: str
) -> None:
    curve = {"margins": margins, "stays": stays, "min_confidence": 0.5, "min_history": 3}
    rewrite_manifest(directory, lambda manifest: manifest.update(confidence=curve))
    with pytest.raises(DamagedRelease, match=message):
        read_release(directory)
