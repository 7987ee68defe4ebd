"""Adds new items to a release without training: their embeddings come from their texts alone.

The new release is the old one with rows added to the catalogue, to the item embeddings and to the encoder's item table.
All other files are copied. The new release is published through the same checks as any release.
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import polars as pl
from numpy.typing import NDArray
from onnx import numpy_helper
from segrec.reading.words import MISSING_WORDS
from segrec.visible import visible

from server.core.history import ID_MAX_BYTES
from server.core.next_visit import ITEM_STATISTICS
from server.core.release import MIGRATION, SEARCH_LISTS, SELLER, TREND, Release, with_item_hashes
from server.core.repository.layout import MODEL_NAME
from training.config import ItemColumns, PublishSettings
from training.data.item_text import VectorFile, item_vectors
from training.data.reading.ids import unusable_ids
from training.data.reading.item_table import IdTable, read_items
from training.errors import ConfigError, LogError, PublishError
from training.model.text_projection import ITEM_TEXT, TextProjection
from training.model.user_encoder import PLACES
from training.publish.active_gate import active_release
from training.publish.gates import Gate, vocabulary_gate
from training.publish.publish import Push, add_release, file_records, with_history, write_segments
from training.ranking.variants import groups_with_new
from training.repository import find_release, locked, newest_release
from training.runs import Progress, no_progress
from training.segments.migration import unchanged_migration, write_migration
from training.segments.search_lists import with_new_items, write_search_lists

_SHOWN, _SHOWN_CHARACTERS = 5, 60
_SAME_MODEL = 0.99
"""Smallest cosine between the vectors that two copies of one language model give for one text."""

_CHANGED_FILES = (
    *("model.onnx", "items.parquet", "item_embeddings.npy", "segments.json", MIGRATION, SEARCH_LISTS),
    "manifest.json",
)
"""Files of the new release that are not copied from the old one."""


@dataclass(frozen=True)
class AddResult:
    """Numbers of the new release and of its source; counts of all items and of the added items; notes on the table."""

    release: int
    source: int
    items: int
    added: int
    notes: tuple[str, ...] = ()


def add_items(
    repository: Path,
    items: Path,
    *,
    release: int | None = None,
    vectors: Path | None = None,
    columns: ItemColumns | None = None,
    words: Collection[str] = MISSING_WORDS,
    skip_known: bool = False,
    push: Push | None = None,
    progress: Progress = no_progress,
) -> AddResult:
    """Publish a release that has the items of `release` (default: the newest) and those of a table.

    `vectors` is a Parquet file like `[text] vectors`, for a release that was trained with one; `words` mean a missing
    value in both files. `skip_known` skips items that the release already has; otherwise they are an error. Quality is
    not measured again, since old items keep their embeddings and users their segments. Raises LogError for an unusable
    table or unusable vectors, ConfigError for a missing language model, PublishError for a release that cannot take new
    items or fails a gate.
    """
    settings = (push and push.settings) or PublishSettings()
    with locked(repository):
        old = _release(repository, release)
        directory = repository / MODEL_NAME / str(old.number)
        projection = _projection(old, directory)
        progress("reading items", 0, 0)
        read = read_items(items, columns or ItemColumns(), repository / ".staging", words)
        _check_ids(read, items)
        table = _new_items(read.rows, items, old, skip_known)
        embeddings = projection(_vectors(table, items, vectors, words, projection, progress))
        model = _with_rows(directory / "model.onnx", old.item_embeddings, embeddings)

        def assemble(staged: Path) -> None:
            for name in old.manifest.files.keys() - set(_CHANGED_FILES):
                shutil.copyfile(directory / name, staged / name)
            onnx.save(model, str(staged / "model.onnx"))
            np.save(staged / "item_embeddings.npy", np.vstack([old.item_embeddings, embeddings]), allow_pickle=False)
            items = catalogue(old, table)
            items.write_parquet(staged / "items.parquet")
            if old.search_lists is not None:
                new = embeddings
                if TREND in items.columns:
                    new = np.column_stack([embeddings, items[TREND].tail(len(embeddings)).to_numpy()])
                write_search_lists(staged / SEARCH_LISTS, with_new_items(old.search_lists, new))
            _write_segments_and_manifest(staged, old, len(table))

        def judge(made: Release, _: Path) -> list[Gate]:
            active = active_release(repository)
            return [vocabulary_gate(made, active, settings.min_known_popularity)] if active else []

        pushed = replace(push or Push(), settings=settings)
        source = f"release {old.number} with {len(table):,} new items"
        number = add_release(repository, assemble, judge, pushed, source, progress)
    return AddResult(number, old.number, len(old.items) + len(table), len(table), read.notes)


def _release(repository: Path, number: int | None) -> Release:
    found = newest_release(repository) if number is None else find_release(repository, number)
    if found is None:
        raise PublishError(f"There is no release in {repository} to add items to; `segrec-train run` creates one.")
    return found


def _projection(release: Release, directory: Path) -> TextProjection:
    if ITEM_TEXT not in release.manifest.files:
        raise PublishError(
            f"Release {release.number} was trained without text, so it cannot place new items; train with "
            '[text] model = "auto", or with vectors, and publish that run.'
        )
    return TextProjection.read(directory / ITEM_TEXT)


def _check_ids(table: IdTable, path: Path) -> None:
    """Raise LogError, which names the first row, for ids that the API refuses."""
    bad = table.rows.select(unusable_ids(pl.col("item_id")).arg_true()).to_series()
    if len(bad):
        first = visible(table.rows["item_id"][bad[0]][:_SHOWN_CHARACTERS])
        raise LogError(
            f"{path} has {len(bad):,} item ids that the server refuses, longer than {ID_MAX_BYTES} UTF-8 bytes or with "
            f"control characters; the first is in row {table.row_numbers[bad[0]]:,}: `{first}`. Correct or remove "
            "these rows."
        )


def _new_items(table: pl.DataFrame, path: Path, release: Release, skip_known: bool) -> pl.DataFrame:
    """Rows of items that the release does not have. Raises LogError when no row is new."""
    known = table["item_id"].is_in(pl.Series(release.item_ids).implode())
    if known.any() and not skip_known:
        raise LogError(
            f"{path} has {int(known.sum()):,} items that release {release.number} has already: "
            f"{_first_ids(table.filter(known))}. Remove them from the file, or add --skip-known."
        )
    new = table.filter(~known)
    if new.is_empty():
        raise LogError(f"{path} has no new item: release {release.number} has all of them already.")
    return new


def _vectors(
    table: pl.DataFrame,
    items: Path,
    vectors: Path | None,
    words: Collection[str],
    projection: TextProjection,
    progress: Progress,
) -> NDArray[np.float32]:
    """Text vectors of new items, from the same sources as in training."""
    source = projection.source
    if bool(source.file_dim) != (vectors is not None):
        if source.file_dim:
            raise ConfigError(
                f"The release was trained with vectors; give --vectors with {source.file_dim} numbers each."
            )
        raise ConfigError("The release was trained without vectors; leave out --vectors.")
    file = VectorFile.read(vectors, words) if vectors else None
    if file and file.values.shape[1] != source.file_dim:
        raise LogError(f"{file.path} has vectors of {file.values.shape[1]} numbers; training had {source.file_dim}.")
    embeddings, current = item_vectors(table, source.model or None, file, None, progress)
    if source.model:
        same_size = len(source.probe) == len(current.probe)
        cosine = float(np.dot(source.probe, current.probe)) if same_size else 0.0
        if cosine < _SAME_MODEL:
            raise ConfigError(
                f"The language model {source.model} differs from the one that the release was trained on."
            )
    without_text = table.filter(~pl.Series(embeddings.any(1)))
    if len(without_text):
        raise LogError(f"{items} has {len(without_text):,} items without text: {_first_ids(without_text)}.")
    return embeddings


def _first_ids(table: pl.DataFrame) -> str:
    shown = ", ".join(f"`{item_id}`" for item_id in table["item_id"].head(_SHOWN))
    return shown + (", …" if len(table) > _SHOWN else "")


def _with_rows(path: Path, old: NDArray[np.float32], new: NDArray[np.float32]) -> onnx.ModelProto:
    """The encoder with rows for new items added to its item table.

    The item table is the tensor whose rows after row 0 equal the `old` embeddings (V, D). A segment embedding that also
    counts bags of items gets zero rows: it ignores new items.
    """
    model = onnx.load(str(path))
    tables = [tensor for tensor in model.graph.initializer if _is_item_table(tensor, old)]
    if not tables:
        raise PublishError(
            f"{path} does not contain the item embeddings, as in a compressed encoder; add the items to the release "
            "before compression."
        )
    _replace(model, tables[0], np.vstack([numpy_helper.to_array(tables[0]), new]))
    for tensor in model.graph.initializer:
        if tensor.name.endswith(PLACES) and list(tensor.dims) == [len(old) + 1, 1]:
            _replace(model, tensor, np.pad(numpy_helper.to_array(tensor), ((0, len(new)), (0, 0))))
    return model


def _is_item_table(tensor: onnx.TensorProto, items: NDArray[np.float32]) -> bool:
    if list(tensor.dims) != [len(items) + 1, items.shape[1]] or tensor.data_type != onnx.TensorProto.FLOAT:
        return False
    return np.array_equal(numpy_helper.to_array(tensor)[1:], items)


def _replace(model: onnx.ModelProto, tensor: onnx.TensorProto, array: NDArray[np.generic]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    _forget_shape(model, tensor.name)


def _forget_shape(model: onnx.ModelProto, name: str) -> None:
    """Remove the recorded shape of a table, which has more rows now."""
    for recorded in [value for value in model.graph.value_info if value.name == name]:
        model.graph.value_info.remove(recorded)


def catalogue(old: Release, table: pl.DataFrame) -> pl.DataFrame:
    """Old items, then new items, which get the smallest popularity of all, no trend and the mean rates of repeats."""
    lowest = float(old.popularity.min())
    statistics = old.item_tables.statistics
    rates = [*statistics.min(axis=0)[:2].tolist(), *statistics.mean(axis=0)[2:].tolist()]
    sellers = [name for name in table.columns if name == SELLER]
    added = table.select(
        "item_id", "title", "category", *sellers, pl.lit(0).alias("event_count"), pl.lit(lowest).alias("popularity")
    ).with_columns(
        pl.lit(0.0).alias(TREND), *(pl.lit(rate).alias(name) for name, rate in zip(ITEM_STATISTICS, rates, strict=True))
    )
    schema = old.items.schema
    typed = added.select(pl.col(name).cast(schema[name]) for name in added.columns if name in schema)
    joined = pl.concat([old.items, typed], how="diagonal")
    return with_item_hashes(joined.with_columns(groups_with_new(old.items, table)))


def _write_segments_and_manifest(staged: Path, old: Release, added: int) -> None:
    number = int(staged.name)
    write_segments(staged, [with_history(profile, number, old) for profile in old.segments])
    write_migration(staged, unchanged_migration(old))
    manifest = old.manifest.model_copy(
        update={
            "release": number,
            "created_time": datetime.now(UTC),
            "parent_release": old.number,
            "item_count": old.manifest.item_count + added,
            "files": file_records(staged),
        }
    )
    (staged / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
