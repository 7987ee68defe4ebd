"""The release format: what one model version needs, in one directory, read back and checked.

manifest.json        everything about the release, with size and SHA-256 of every other file
manifest.sig         its signature, where the release was signed; see `server.core.signature`
model.onnx           the encoder; inputs and output as in `server.core.features`, `repository.OUTPUT`
preprocessing.json   `Preprocessing`
items.parquet        the catalogue; row r is item index r + 1; `TREND` is among its columns where there is one
item_embeddings.npy  float32 (V, D); the first D numbers of a user embedding rank items by inner product
centroids.npy        float32 (K, E), in the space of L2-normalised `segment_part`s of user embeddings
segments.json        one `SegmentProfile` per centroid, in the same order
segment_items.parquet  each segment's best items: segment_id, item_index, score, lift
migration.json       `Migration`, where there was a release before
drift_reference.json  what the users were like, in groups, for `segrec-train drift`; the server does not read it
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import faiss
import numpy as np
import polars as pl
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.core.errors import DamagedRelease
from server.core.features import Inputs
from server.core.hash_index import HashIndex, hashes_of
from server.core.preprocessing import Preprocessing
from server.core.profiles import Migration, SegmentProfile
from server.core.segments import segment_part
from server.core.signature import check_signature

T = TypeVar("T")

SCHEMA_VERSION = 1
GOLDEN_TOLERANCE = 1e-4
"""Largest difference allowed between an embedding and its golden value, for an encoder that computes in float32;
other processors round otherwise."""

FILES = (
    "model.onnx",
    "preprocessing.json",
    "items.parquet",
    "item_embeddings.npy",
    "centroids.npy",
    "segments.json",
    "segment_items.parquet",
)

MIGRATION = "migration.json"
ITEM_HASH = "item_hash"
"""The column of `items.parquet` with each item id's `text_hash`, uint64; spares a server a second for 400,000 items."""
TREND = "trend"
"""The column of `items.parquet` with what is added to personal scores for what is in demand just now, float32 nats."""
HASHES_CHECKED = 100
"""About so many of them are worked out again when a release is read."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Model):
    """A file of the release."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Golden(_Model):
    """Inputs and the embeddings that they must give, so that a release proves itself on the machine that serves it."""

    item_index: list[list[int]]
    action_index: list[list[int]]
    value: list[list[float]]
    gap_index: list[list[int]]
    user_embedding: list[list[float]]
    tolerance: float = Field(default=GOLDEN_TOLERANCE, gt=0, le=0.05, description="Largest difference allowed.")

    def inputs(self) -> Inputs:
        """Encoder inputs, (B, L) each."""
        return {
            "item_index": np.array(self.item_index, np.int32),
            "action_index": np.array(self.action_index, np.int32),
            "value": np.array(self.value, np.float32),
            "gap_index": np.array(self.gap_index, np.int32),
        }

    def difference(self, embeddings: NDArray[np.float32]) -> float:
        """Largest absolute difference to the golden embeddings; infinite for another shape or for NaN."""
        expected = np.array(self.user_embedding, np.float32)
        if embeddings.shape != expected.shape or not np.isfinite(embeddings).all():
            return float("inf")
        return float(np.abs(embeddings - expected).max())


class Confidence(_Model):
    """How sure a user's segment is, from how clearly it is the nearest; fitted by `training.confidence`.

    `margins` rise from 0 to 1, and `stays` gives at each of them the share of users who were in the same segment
    before their latest events; between them it is linear. See `server.core.segments.margin`.
    """

    margins: tuple[float, ...] = Field(min_length=1)
    stays: tuple[float, ...] = Field(min_length=1)
    min_confidence: float = Field(ge=0, le=1)
    min_history: int = Field(ge=0)

    @model_validator(mode="after")
    def _is_a_curve(self) -> Self:
        if len(self.margins) != len(self.stays):
            raise ValueError(f"{len(self.margins)} margins have {len(self.stays)} stays; each needs its own")
        for name, values in (("margins", self.margins), ("stays", self.stays)):
            if not all(0 <= low <= high <= 1 for low, high in zip((0.0, *values), values, strict=False)):
                raise ValueError(f"{name} must rise within 0 and 1")
        return self

    def at(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """The confidence, 0 to 1, of each margin (B,)."""
        found: NDArray[np.float64] = np.interp(margins, self.margins, self.stays)
        return found


class Manifest(_Model):
    """`manifest.json`."""

    schema_version: int = SCHEMA_VERSION
    release: int = Field(ge=1, lt=10**18)
    created_time: datetime
    data_cutoff_time: datetime | None = Field(default=None, description="Newest event; none for a log without clock.")
    parent_release: int = Field(default=0, ge=0)
    embedding_dim: int = Field(ge=1, description="Length of item embeddings; user embeddings can be longer.")
    max_length: int = Field(ge=1)
    item_count: int = Field(ge=1)
    segment_count: int = Field(ge=1)
    hybrid_weight: float = Field(ge=0, le=1, description="Share of the personal score in the hybrid; rest: segment.")
    figures: dict[str, float] = Field(default_factory=dict, description="Quality by name; larger is better.")
    confidence: Confidence | None = Field(default=None, description="None for releases of before there was one.")
    min_segment_size: int = Field(default=0, ge=0, description="No segment or flow of fewer users is published.")
    files: dict[str, FileRecord]
    golden: Golden


@dataclass(frozen=True, slots=True)
class RankedItems:
    """Items best first: `item_index` int32 (M,), `score` and `lift` float32 (M,). Scores are log-probabilities."""

    item_index: NDArray[np.int32]
    score: NDArray[np.float32]
    lift: NDArray[np.float32]


@dataclass(frozen=True)
class Release:
    """A release in memory. V items, K segments, D dimensions."""

    manifest: Manifest
    preprocessing: Preprocessing
    items: pl.DataFrame
    item_embeddings: NDArray[np.float32]
    centroids: NDArray[np.float32]
    segments: tuple[SegmentProfile, ...]
    segment_items: dict[int, RankedItems]
    migration: Migration | None = None

    @property
    def number(self) -> int:
        """The release's number."""
        return self.manifest.release

    @cached_property
    def item_ids(self) -> list[str]:
        """Item ids by row (V); row r is item index r + 1."""
        return self.items["item_id"].to_list()

    @cached_property
    def titles(self) -> list[str]:
        """Titles by row (V); empty where there is none."""
        return self.items["title"].fill_null("").to_list()

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Item id → item index, from 1."""
        return {item_id: row + 1 for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def item_index(self) -> HashIndex:
        """Item → item index, from 1, for the columns of histories."""
        if ITEM_HASH not in self.items.columns:  # releases made before there was one
            return HashIndex.of(self.item_ids)
        return HashIndex.of_hashes(self.items[ITEM_HASH].to_numpy())

    @cached_property
    def action_index(self) -> HashIndex:
        """Action → action index, from 1, for the columns of histories."""
        return HashIndex.of([action.name for action in self.preprocessing.actions])

    @cached_property
    def popularity(self) -> NDArray[np.float32]:
        """Log-probability of each item in the whole population, (V,)."""
        return self.items["popularity"].to_numpy().astype(np.float32)

    @cached_property
    def popular_rows(self) -> NDArray[np.intp]:
        """Rows of all items (V,), the most popular first."""
        return np.argsort(-self.popularity, kind="stable")

    @cached_property
    def category_rows(self) -> dict[str, NDArray[np.intp]]:
        """Category → rows of its items."""
        exploded = self.items.with_row_index("row").select("row", "category").explode("category").drop_nulls()
        groups = exploded.group_by("category", maintain_order=True).agg("row")
        return {name: np.array(rows, np.intp) for name, rows in groups.iter_rows()}

    @cached_property
    def trend(self) -> NDArray[np.float32] | None:
        """What is added to each item's personal score, (V,); None for a release without one."""
        return self.items[TREND].to_numpy().astype(np.float32) if TREND in self.items.columns else None

    @cached_property
    def item_search(self) -> faiss.IndexFlatIP:
        """Exact search over the items by personal score; see `search`."""
        items = self.item_embeddings if self.trend is None else np.column_stack([self.item_embeddings, self.trend])
        index = faiss.IndexFlatIP(items.shape[1])
        index.add(np.ascontiguousarray(items, np.float32))
        return index

    def search(self, embeddings: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Rows of the `count` items of highest personal score of each user embedding (B, D), (B, count)."""
        if self.trend is not None:
            embeddings = np.column_stack([embeddings, np.ones(len(embeddings), np.float32)])
        return self.item_search.search(embeddings, count)[1]

    def personal_scores(self, embeddings: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Inner products of user embeddings (D,) or (B, D) with items (R,), plus their trend: (R,) or (B, R)."""
        scores: NDArray[np.float32] = embeddings @ self.item_embeddings[rows].T
        return scores if self.trend is None else scores + self.trend[rows]

    def warm(self, pause: Callable[[], None]) -> None:
        """Build the look-ups now, so that no request pays for them."""
        for name, attribute in vars(type(self)).items():
            if isinstance(attribute, cached_property):
                pause()
                getattr(self, name)


def with_item_hashes(items: pl.DataFrame) -> pl.DataFrame:
    """A catalogue with the hashes of its item ids, which `items.parquet` holds so that no server works them out."""
    return items.with_columns(pl.Series(ITEM_HASH, hashes_of(items["item_id"].to_list())))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(path: Path) -> FileRecord:
    """The manifest's record of a file."""
    return FileRecord(sha256=sha256_of(path), size_bytes=path.stat().st_size)


def read_release(
    directory: Path, key: Ed25519PublicKey | None = None, pause: Callable[[], None] = lambda: None
) -> Release:
    """Read and check a release, ready to answer. Raises `DamagedRelease`, which says what is wrong and where.

    With a `key`, only a release that was signed for it is good, and nothing of another one is read. `pause` is called
    between the steps, of which there are some thirty.
    """

    def read(name: str, how: Callable[[Path], T]) -> T:
        pause()
        return how(directory / name)

    try:
        manifest = read_manifest(directory, key)
        _check_files(directory, manifest, pause)
        release = Release(
            manifest,
            read("preprocessing.json", lambda path: Preprocessing.model_validate_json(path.read_bytes())),
            read("items.parquet", pl.read_parquet),
            read("item_embeddings.npy", _read_array),
            read("centroids.npy", _read_array),
            read("segments.json", _read_segments),
            read("segment_items.parquet", _read_segment_items),
            read(MIGRATION, _read_migration) if MIGRATION in manifest.files else None,
        )
        _check_shapes(release)
        release.warm(pause)
    except DamagedRelease:
        raise
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise DamagedRelease(f"release {directory} cannot be read: {_first_line(error)}") from error
    return release


def read_manifest(directory: Path, key: Ed25519PublicKey | None = None) -> Manifest:
    """Read `manifest.json` alone; see `read_release`. Raises `DamagedRelease`."""
    path = directory / "manifest.json"
    try:
        text = path.read_bytes()
        if key is not None:
            check_signature(directory, text, key)
        manifest = Manifest.model_validate_json(text)
    except FileNotFoundError as error:
        raise DamagedRelease(f"release {directory} has no manifest.json: the copy is not complete") from error
    except (OSError, ValidationError) as error:
        raise DamagedRelease(f"{path} cannot be read: {_first_line(error)}") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise DamagedRelease(f"{path} has schema version {manifest.schema_version}; this build reads {SCHEMA_VERSION}")
    if str(manifest.release) != directory.name:
        raise DamagedRelease(f"{path} is of release {manifest.release}, but its directory is named {directory.name}")
    return manifest


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_files(directory: Path, manifest: Manifest, pause: Callable[[], None]) -> None:
    missing = sorted(set(FILES) - set(manifest.files))
    if missing:
        raise DamagedRelease(f"the manifest of {directory} lacks {', '.join(missing)}")
    for name, record in manifest.files.items():
        pause()
        path = directory / name
        if Path(name).name != name or not path.is_file():
            raise DamagedRelease(f"release {directory} lacks {name}: copy it again")
        if path.stat().st_size != record.size_bytes or sha256_of(path) != record.sha256:
            raise DamagedRelease(f"{path} is not the file that was published (size or SHA-256 differs): copy it again")


def _read_array(path: Path) -> NDArray[Any]:
    return np.ascontiguousarray(np.load(path, allow_pickle=False))


def _read_segments(path: Path) -> tuple[SegmentProfile, ...]:
    return tuple(SegmentProfile.model_validate(entry) for entry in json.loads(path.read_bytes()))


def _read_migration(path: Path) -> Migration:
    return Migration.model_validate_json(path.read_bytes())


def _read_segment_items(path: Path) -> dict[int, RankedItems]:
    frame = pl.read_parquet(path)
    return {
        int(segment_id): RankedItems(
            part["item_index"].to_numpy().astype(np.int32),
            part["score"].to_numpy().astype(np.float32),
            part["lift"].to_numpy().astype(np.float32),
        )
        for (segment_id,), part in frame.partition_by("segment_id", as_dict=True, maintain_order=True).items()
    }


def _check_shapes(release: Release) -> None:
    manifest, where = release.manifest, f"release {release.number}"
    items = (manifest.item_count, manifest.embedding_dim)
    golden = np.array(manifest.golden.user_embedding, np.float32)
    if golden.ndim != 2 or golden.shape[1] < manifest.embedding_dim:
        raise DamagedRelease(f"{where}: golden embeddings must be rows of {manifest.embedding_dim} numbers or more")
    segments = (manifest.segment_count, segment_part(golden, manifest.embedding_dim).shape[1])
    checks: list[tuple[str, Any, Any]] = [
        ("items.parquet rows", release.items.height, manifest.item_count),
        ("item_embeddings.npy shape", release.item_embeddings.shape, items),
        ("centroids.npy shape", release.centroids.shape, segments),
        ("segments.json entries", len(release.segments), manifest.segment_count),
        ("preprocessing.json max_length", release.preprocessing.max_length, manifest.max_length),
        ("distinct segment ids", len({s.segment_id for s in release.segments}), manifest.segment_count),
    ]
    for name, found, expected in checks:
        if found != expected:
            raise DamagedRelease(f"{where}: {name} is {found}, the manifest says {expected}")
    arrays = {"item_embeddings.npy": release.item_embeddings, "centroids.npy": release.centroids}
    for name, array in (arrays | {f"{TREND} of items.parquet": release.trend}).items():
        if array is not None and (array.dtype != np.float32 or not np.isfinite(array).all()):
            raise DamagedRelease(f"{where}: {name} must hold finite float32 numbers")
    for ranked in release.segment_items.values():
        listed = ranked.item_index
        if len(listed) and not 1 <= listed.min() <= listed.max() <= manifest.item_count:
            raise DamagedRelease(f"{where}: segment_items.parquet names items that are not in the catalogue")
    if {"item_id", "title", "category", "popularity"} - set(release.items.columns):
        raise DamagedRelease(f"{where}: items.parquet must have item_id, title, category and popularity")
    if ITEM_HASH in release.items.columns:
        hashes, step = release.items[ITEM_HASH], 1 + release.items.height // HASHES_CHECKED
        some = pl.concat([release.items.gather_every(step), release.items.tail(1)])
        if hashes.dtype != pl.UInt64 or hashes.null_count() or not some.equals(with_item_hashes(some)):
            raise DamagedRelease(f"{where}: items.parquet has other values of {ITEM_HASH} than this build gives")
