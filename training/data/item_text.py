"""What is known of items beside their ids: vectors of their texts by a language model, and vectors out of a file.

An item's text is its title, its categories and its description. With such vectors an item that nobody has touched can
enter the catalogue, and is recommended for what it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from server.core.frozen_model import FrozenModel
from server.core.history import ID_MAX_BYTES
from training.config import Text
from training.data.columns import find_columns, require_columns
from training.data.tables import column_names, readable, scan_table
from training.data.text_encoders import choose_model, encode_texts
from training.errors import LogError
from training.runs import Progress, no_progress, write_atomically

VECTORS = "text_vectors.npy"
SOURCE = "text.json"

_PROBE = "Segrec"
_CONTROL = r"[\x00-\x1f\x7f]"


class TextSource(FrozenModel):
    """Where text vectors come from, so that those of later items come from the same."""

    model: str = Field(description="The language model; empty where there is none.")
    model_dim: int = Field(ge=0)
    file_dim: int = Field(ge=0, description="Size of the vectors that came from a file, beside the model's.")
    probe: tuple[float, ...] = Field(description="The model's vector of a fixed text.")


@dataclass(frozen=True)
class ItemText:
    """What `prepare` found of the items' texts: `vectors` float32 (V, T), zeros without text."""

    vectors: NDArray[np.float32]
    source: TextSource


def read_item_text(prepared: Path) -> ItemText | None:
    """What `add_text` wrote; None where no text was wanted."""
    if not (prepared / SOURCE).is_file():
        return None
    source = TextSource.model_validate_json((prepared / SOURCE).read_bytes())
    return ItemText(np.load(prepared / VECTORS, allow_pickle=False), source)


@dataclass(frozen=True)
class VectorFile:
    """Vectors that somebody computed: `item_ids` (n), all different, and `values` float32 (n, T), all finite."""

    path: Path
    item_ids: pl.Series
    values: NDArray[np.float32]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a Parquet file of an item id and a list of numbers. Raises LogError that names the first bad row."""
        if path.suffix.lower() != ".parquet":
            raise LogError(f"{path} holds item vectors, which come as Parquet: an item id and a list of numbers.")
        frame = scan_table(path, path.parent)
        names, schema = column_names(frame), frame.collect_schema()
        id_column = find_columns(names, {}, ("item_id",), "items", str(path))
        require_columns(id_column, names, ("item_id",), "items", str(path))
        lists = [name for name in names if isinstance(schema[name], pl.List | pl.Array)]
        if len(lists) != 1:
            raise LogError(f"{path} must have one column of lists of numbers, the vectors; it has {len(lists)}.")
        with readable(path):
            table = frame.select(
                pl.col(id_column["item_id"]).cast(pl.String).str.strip_chars().alias("item_id"),
                pl.col(lists[0]).cast(pl.List(pl.Float32)).alias("vector"),
            ).collect()
        return cls(path, table["item_id"], _checked(table, path))

    def require_known(self, known: pl.Series) -> None:
        """Raise LogError naming the first item that is not among `known`."""
        for row in (~self.item_ids.is_in(known.implode())).arg_true().head(1):
            item_id = self.item_ids[row]
            raise LogError(f"{self.path}, row {row + 1:,}: item `{item_id}` is in neither the log nor the item table.")

    def of(self, item_ids: pl.Series) -> NDArray[np.float32]:
        """Their vectors at length 1, (V, T); zeros where the file has none."""
        rows = pl.DataFrame({"item_id": self.item_ids}).with_row_index("row")
        found = item_ids.to_frame("item_id").join(rows, on="item_id", how="left", maintain_order="left")["row"]
        vectors = np.zeros((len(item_ids), self.values.shape[1]), np.float32)
        vectors[found.is_not_null().to_numpy()] = self.values[found.drop_nulls().to_numpy()]
        return _at_length_one(vectors)


def add_text(
    catalogue: pl.DataFrame,
    table: pl.DataFrame | None,
    log_ids: pl.Series,
    settings: Text,
    store: Path,
    directory: Path,
    progress: Progress = no_progress,
) -> tuple[pl.DataFrame, list[str]]:
    """Write the items' text vectors into `directory`, and return the catalogue with remarks.

    Items of the item table and of the vector file that the catalogue lacks come after the others, if they have a
    vector. `log_ids` are the item ids of the log as it was read, `store` is where vectors are kept between runs.
    Writes `VECTORS`, float32 (V, T), zeros without text, and `SOURCE`; removes both where no text is wanted.
    """
    for name in (VECTORS, SOURCE):
        (directory / name).unlink(missing_ok=True)
    file = VectorFile.read(settings.vectors) if settings.vectors else None
    if settings.model == "none" and file is None:
        return catalogue, []
    table = pl.DataFrame(schema=_TABLE) if table is None else table.select(list(_TABLE))
    if file:
        file.require_known(pl.concat([log_ids, table["item_id"]]))
        more = pl.DataFrame({"item_id": file.item_ids}).join(table, on="item_id", how="anti")
        table = pl.concat([table, more], how="diagonal")
    cold, refused = _usable(table.join(catalogue, on="item_id", how="anti", maintain_order="left"))
    described = catalogue.join(table.select("item_id", "description"), on="item_id", how="left", maintain_order="left")
    empty = pl.lit(0, pl.UInt32).alias("event_count"), pl.lit(0.0).alias("weight")
    candidates = pl.concat([described, cold.with_columns(empty)], how="diagonal")
    model = None if settings.model == "none" else settings.model
    vectors, source = item_vectors(candidates, model, file, store, progress)
    kept = (candidates["event_count"] > 0).to_numpy() | vectors.any(1)
    np.save(directory / VECTORS, vectors[kept], allow_pickle=False)
    write_atomically(directory / SOURCE, source.model_dump_json(indent=1) + "\n")
    joined = candidates.filter(kept).select(catalogue.columns)
    read_by = source.model + " (chosen by the letters of the texts)" * (settings.model == "auto")
    sources = ([read_by] if model else []) + ([str(file.path)] if file else [])
    notes = [f"text by {' and '.join(sources)}: {int(vectors[kept].any(1).sum()):,} of {len(joined):,} items have some"]
    if new := len(joined) - len(catalogue):
        notes.append(f"{new:,} items that nobody has touched join the catalogue by their text")
    return joined, notes + refused


def item_vectors(
    items: pl.DataFrame, model: str | None, file: VectorFile | None, store: Path | None, progress: Progress
) -> tuple[NDArray[np.float32], TextSource]:
    """Vectors (V, T) at length 1, zeros for an item without any, and where they come from.

    `items` has item_id, title, category and description. With a model and a file both vectors stand side by side.
    Raises ConfigError where the model is not there, and LogError where no item has a text to read.
    """
    parts: list[NDArray[np.float32]] = []
    probe: tuple[float, ...] = ()
    name = ""
    if model:
        texts = texts_of(items)
        distinct = texts.drop_nulls().unique(maintain_order=True)
        if distinct.is_empty():
            raise LogError("[text] model has nothing to read: no item has a title or a description.")
        name = choose_model(distinct) if model == "auto" else model
        found = encode_texts(name, [_PROBE, *distinct], store, progress)
        probe = tuple(found[0].tolist())
        place = texts.replace_strict(distinct, np.arange(1, len(found)), default=0, return_dtype=pl.Int64).fill_null(0)
        found[0] = 0.0
        parts.append(found[place.to_numpy()])
    if file:
        parts.append(file.of(items["item_id"]))
    return _at_length_one(np.hstack(parts)), TextSource(
        model=name, model_dim=len(probe), file_dim=file.values.shape[1] if file else 0, probe=probe
    )


def texts_of(items: pl.DataFrame) -> pl.Series:
    """The text of each item: title, categories and description; null where it has neither the first nor the last."""
    title, description = (pl.when(pl.col(name) != "").then(name) for name in ("title", "description"))
    categories = pl.when(pl.col("category").list.len() > 0).then(pl.col("category").list.join(", "))
    told = pl.any_horizontal(title.is_not_null(), description.is_not_null())
    parts = pl.concat_str(title, categories, description, separator=". ", ignore_nulls=True)
    return items.select(pl.when(told).then(parts).alias("text")).to_series()


_TABLE: Mapping[str, pl.DataType | type[pl.DataType]] = {
    "item_id": pl.String,
    "title": pl.String,
    "category": pl.List(pl.String),
    "description": pl.String,
}


def _usable(cold: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Without ids that the API would refuse, as `cleaning.drop_unusable_ids` has it for the log."""
    bad = (pl.col("item_id").str.len_bytes() > ID_MAX_BYTES) | pl.col("item_id").str.contains(_CONTROL)
    kept = cold.filter(~bad)
    dropped = len(cold) - len(kept)
    return kept, [f"{dropped:,} items of the item table have unusable ids and stay out"] if dropped else []


def _checked(table: pl.DataFrame, path: Path) -> NDArray[np.float32]:
    """The vectors, (n, T); raises LogError for the first row that is none."""
    vector = pl.col("vector")
    length = vector.list.len()
    finite = vector.list.eval(pl.element().is_finite().fill_null(False)).list.all()
    problems = {
        "has no item id": pl.col("item_id").fill_null("") == "",
        "has no vector": vector.is_null() | (length == 0),
        "has numbers that are missing or not finite": ~finite,
        "is of another length than the first row": length != length.first(),
        "repeats an item of a row above": ~pl.col("item_id").is_first_distinct(),
    }
    marked = table.select(expression.fill_null(False).alias(what) for what, expression in problems.items())
    bad = [(int(rows[0]), what) for what in problems if len(rows := marked[what].arg_true())]
    if bad:
        row, what = min(bad)
        raise LogError(f"{path}, row {row + 1:,}: the vector {what} (item `{table['item_id'][row]}`).")
    if table.is_empty():
        raise LogError(f"{path} has no rows.")
    return table["vector"].list.to_array(len(table["vector"][0])).to_numpy()


def _at_length_one(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return scaled
