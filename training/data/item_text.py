"""Item vectors from texts, by a language model, and from a file of vectors.

The text of an item is its title, categories and description. With such a vector, an item without events can enter the
catalogue and be recommended by its content.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from segrec.reading.words import MISSING_WORDS

from server.core.frozen_model import FrozenModel
from training.config import Text
from training.data.columns import find_columns, require_columns
from training.data.reading.ids import id_of, unreadable_ids, unusable_ids
from training.data.reading.tables import column_names, readable, scan_table
from training.data.text_encoders import choose_model, encode_texts
from training.errors import LogError
from training.runs import Progress, no_progress, write_atomically

VECTORS = "text_vectors.npy"
SOURCE = "text.json"

_PROBE = "Segrec"


class TextSource(FrozenModel):
    """The origin of text vectors, so that later items get vectors of the same origin."""

    model: str = Field(description="The language model; empty if there is none.")
    model_dim: int = Field(ge=0)
    file_dim: int = Field(ge=0, description="Dimensions of the vectors from a file; they follow the model's.")
    probe: tuple[float, ...] = Field(
        description="The model's vector of a fixed text, to check that a model is the same."
    )


@dataclass(frozen=True)
class ItemText:
    """Text vectors of the catalogue: `vectors` float32 (V, T), zeros for items without text."""

    vectors: NDArray[np.float32]
    source: TextSource


def read_item_text(prepared: Path) -> ItemText | None:
    """The vectors that `add_text` wrote; None if the run has no text vectors."""
    if not (prepared / SOURCE).is_file():
        return None
    source = TextSource.model_validate_json((prepared / SOURCE).read_bytes())
    return ItemText(np.load(prepared / VECTORS, allow_pickle=False), source)


@dataclass(frozen=True)
class VectorFile:
    """The vectors of a file: `item_ids` (n), all distinct, and `values` float32 (n, T), all finite."""

    path: Path
    item_ids: pl.Series
    values: NDArray[np.float32]

    @classmethod
    def read(cls, path: Path, words: Collection[str] = MISSING_WORDS) -> Self:
        """Read a Parquet file with an item id and a list of numbers; `words` mean a missing id.

        Raises LogError that names the first bad row.
        """
        if path.suffix.lower() != ".parquet":
            raise LogError(
                f"Item vectors must be a Parquet file with an item id and a list of numbers; {path} is not Parquet."
            )
        frame = scan_table(path, path.parent)
        names, schema = column_names(frame), frame.collect_schema()
        id_column = find_columns(names, {}, ("item_id",), "items", str(path))
        require_columns(id_column, names, ("item_id",), "items", str(path))
        lists = [name for name in names if isinstance(schema[name], pl.List | pl.Array)]
        if len(lists) != 1:
            raise LogError(f"{path} must have one column of lists of numbers, the vectors; it has {len(lists)}.")
        ids = id_column["item_id"]
        with readable(path):
            table = frame.select(
                id_of(ids, schema[ids], path, words).alias("item_id"),
                pl.col(lists[0]).cast(pl.List(pl.Float32)).alias("vector"),
                unreadable_ids(ids, schema[ids]).alias("is_bad"),
            ).collect()
        for row in table["is_bad"].arg_true().head(1):
            raise LogError(f"{path}, row {row + 1:,}: the column `{ids}` (item_id) holds no id; save it as text.")
        return cls(path, table["item_id"], _checked(table, path))

    def require_known(self, known: pl.Series) -> None:
        """Raise LogError that names the first item that is not in `known`."""
        for row in (~self.item_ids.is_in(known.implode())).arg_true().head(1):
            item_id = self.item_ids[row]
            raise LogError(f"{self.path}, row {row + 1:,}: item `{item_id}` is in neither the log nor the item table.")

    def of(self, item_ids: pl.Series) -> NDArray[np.float32]:
        """Vectors of length 1 of the items, (V, T); zeros for items that the file lacks."""
        rows = pl.DataFrame({"item_id": self.item_ids}).with_row_index("row")
        file_rows = item_ids.to_frame("item_id").join(rows, on="item_id", how="left", maintain_order="left")["row"]
        vectors = np.zeros((len(item_ids), self.values.shape[1]), np.float32)
        vectors[file_rows.is_not_null().to_numpy()] = self.values[file_rows.drop_nulls().to_numpy()]
        return _at_length_one(vectors)


def add_text(
    catalogue: pl.DataFrame,
    table: pl.DataFrame | None,
    log_ids: pl.Series,
    settings: Text,
    store: Path,
    directory: Path,
    progress: Progress = no_progress,
    words: Collection[str] = MISSING_WORDS,
) -> tuple[pl.DataFrame, list[str]]:
    """Write the items' text vectors into `directory`, and return the extended catalogue and notes.

    Items of the item table and the vector file that are not in the catalogue are appended to it, if they have a vector.
    `log_ids` are the item ids of the log before cleaning; `store` is the directory that keeps vectors between runs;
    `words` mean a missing id in the vector file.
    Writes `VECTORS`, float32 (V, T), zeros for items without text, and `SOURCE`; removes both if `[text]` is off.
    """
    for name in (VECTORS, SOURCE):
        (directory / name).unlink(missing_ok=True)
    file = VectorFile.read(settings.vectors, words) if settings.vectors else None
    if settings.model == "none" and file is None:
        return catalogue, []
    table = pl.DataFrame(schema=_TABLE) if table is None else table.select(list(_TABLE))
    if file:
        file.require_known(pl.concat([log_ids, table["item_id"]]))
        file_only = pl.DataFrame({"item_id": file.item_ids}).join(table, on="item_id", how="anti")
        table = pl.concat([table, file_only], how="diagonal")
    new_items, refusal_notes = _usable(table.join(catalogue, on="item_id", how="anti", maintain_order="left"))
    described = catalogue.join(table.select("item_id", "description"), on="item_id", how="left", maintain_order="left")
    no_events = pl.lit(0, pl.UInt32).alias("event_count"), pl.lit(0.0).alias("weight")
    candidates = pl.concat([described, new_items.with_columns(no_events)], how="diagonal")
    model = None if settings.model == "none" else settings.model
    vectors, source = item_vectors(candidates, model, file, store, progress)
    kept = (candidates["event_count"] > 0).to_numpy() | vectors.any(1)
    np.save(directory / VECTORS, vectors[kept], allow_pickle=False)
    write_atomically(directory / SOURCE, source.model_dump_json(indent=1) + "\n")
    joined = candidates.filter(kept).select(catalogue.columns)
    model_note = source.model + " (chosen by the letters of the texts)" * (settings.model == "auto")
    sources = ([model_note] if model else []) + ([str(file.path)] if file else [])
    notes = [
        f"text by {' and '.join(sources)}: {int(vectors[kept].any(1).sum()):,} of {len(joined):,} items have a vector"
    ]
    if new := len(joined) - len(catalogue):
        notes.append(f"{new:,} items without events join the catalogue by their text")
    return joined, notes + refusal_notes


def item_vectors(
    items: pl.DataFrame, model: str | None, file: VectorFile | None, store: Path | None, progress: Progress
) -> tuple[NDArray[np.float32], TextSource]:
    """Vectors (V, T) of length 1, zeros for an item without a vector, and their origin.

    `items` has item_id, title, category and description. With a model and a file, both vectors are concatenated.
    Raises ConfigError if the model is not available, and LogError if no item has a text.
    """
    parts: list[NDArray[np.float32]] = []
    probe: tuple[float, ...] = ()
    name = ""
    if model:
        texts = texts_of(items)
        distinct = texts.drop_nulls().unique(maintain_order=True)
        if distinct.is_empty():
            raise LogError("[text] model has no texts to read: no item has a title or a description.")
        name = choose_model(distinct) if model == "auto" else model
        encoded = encode_texts(name, [_PROBE, *distinct], store, progress)
        probe = tuple(encoded[0].tolist())
        rows = texts.replace_strict(distinct, np.arange(1, len(encoded)), default=0, return_dtype=pl.Int64).fill_null(0)
        encoded[0] = 0.0
        parts.append(encoded[rows.to_numpy()])
    if file:
        parts.append(file.of(items["item_id"]))
    return _at_length_one(np.hstack(parts)), TextSource(
        model=name, model_dim=len(probe), file_dim=file.values.shape[1] if file else 0, probe=probe
    )


def texts_of(items: pl.DataFrame) -> pl.Series:
    """The text of each item: title, categories, description; null for an item without title and description."""
    title, description = (pl.when(pl.col(name) != "").then(name) for name in ("title", "description"))
    categories = pl.when(pl.col("category").list.len() > 0).then(pl.col("category").list.join(", "))
    has_text = pl.any_horizontal(title.is_not_null(), description.is_not_null())
    parts = pl.concat_str(title, categories, description, separator=". ", ignore_nulls=True)
    return items.select(pl.when(has_text).then(parts).alias("text")).to_series()


_TABLE: Mapping[str, pl.DataType | type[pl.DataType]] = {
    "item_id": pl.String,
    "title": pl.String,
    "category": pl.List(pl.String),
    "description": pl.String,
}


def _usable(items: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The items with ids that the API accepts, and notes."""
    kept = items.filter(~unusable_ids(pl.col("item_id")))
    dropped = len(items) - len(kept)
    return kept, [f"{dropped:,} items of the item table have unusable ids and are left out"] if dropped else []


def _checked(table: pl.DataFrame, path: Path) -> NDArray[np.float32]:
    """The vectors (n, T); raises LogError for the first bad row."""
    vector = pl.col("vector")
    length = vector.list.len()
    finite = vector.list.eval(pl.element().is_finite().fill_null(False)).list.all()
    problems = {
        "has no item id": pl.col("item_id").fill_null("") == "",
        "has no vector": vector.is_null() | (length == 0),
        "has numbers that are missing or not finite": ~finite,
        "is of another length than the first row": length != length.first(),
        "repeats an item of an earlier row": ~pl.col("item_id").is_first_distinct(),
    }
    marked = table.select(expression.fill_null(False).alias(problem) for problem, expression in problems.items())
    bad = [(int(rows[0]), problem) for problem in problems if len(rows := marked[problem].arg_true())]
    if bad:
        row, problem = min(bad)
        raise LogError(f"{path}, row {row + 1:,}: the vector {problem} (item `{table['item_id'][row]}`).")
    if table.is_empty():
        raise LogError(f"{path} has no rows.")
    return table["vector"].list.to_array(len(table["vector"][0])).to_numpy()


def _at_length_one(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    largest = np.abs(vectors).max(1, keepdims=True, initial=0.0)  # squares of large numbers are no float32
    vectors = np.divide(vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return scaled
