"""The release format: the files in the directory of a model version, and their values in memory.

manifest.json        everything about the release, with size and SHA-256 of every other file
manifest.sig         its signature, if the release is signed; see `server.core.repository.signature`
model.onnx           the encoder; inputs and output as in `server.core.features`, `repository.OUTPUT`
preprocessing.json   `Preprocessing`
items.parquet        the catalogue; row r is item index r + 1; `GROUP` tells variants, `TREND` and `SELLER` are optional
item_embeddings.npy  float32 (V, D); the first D numbers of a user embedding rank items by inner product
centroids.npy        float32 (K, E), in the space of L2-normalised `segment_part`s of user embeddings
segments.json        one `SegmentProfile` per centroid, in the order of the centroids
segment_items.parquet  the items recommended to each segment, best first: segment_id, item_index, score
ranking.json         `NextVisitModel`, if the log has repeats; then `items.parquet` has the `ITEM_STATISTICS`
search_lists.npz       `SearchLists`, if the catalogue is too large for an exact search
migration.json       `Migration`, if there was a previous release
drift_reference.json  grouped statistics of the users, for `segrec-train drift`; the server does not read this file
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AwareDatetime, Field, model_validator

from server.core.features import Inputs
from server.core.figures import Figure
from server.core.frozen_model import FrozenModel
from server.core.hash_index import HashIndex, hashes_of
from server.core.item_search import ItemSearch, SearchLists
from server.core.next_visit import ITEM_STATISTICS, ItemTables, NextVisitModel, SegmentList
from server.core.preprocessing import Preprocessing
from server.core.profiles import Migration, SegmentProfile
from server.core.rules import RulesInForce

SCHEMA_VERSION = 2

GOLDEN_TOLERANCE = 1e-4
"""Largest allowed difference between an embedding and its golden value, for an encoder in float32. Processors round
differently."""

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
RANKING = "ranking.json"
SEARCH_LISTS = "search_lists.npz"
ITEM_HASH = "item_hash"
"""Column of `items.parquet`: `text_hash` of the item id, uint64. It saves the server a second per 400,000 items."""
GROUP = "group"
"""Column of `items.parquet`: the row of the first item of the item's group, int32. Items of one group are variants of
one thing, of which the best is recommended."""
SELLER = "seller"
"""Column of `items.parquet`, optional: who sells the item, text or null."""
TREND = "trend"
"""Column of `items.parquet`: the trend that is added to an item's personal score, float32, in nats."""


class FileRecord(FrozenModel):
    """Size and hash of a file of the release."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Golden(FrozenModel):
    """Encoder inputs and their expected embeddings, to check the encoder on the machine that serves it."""

    item_index: list[list[int]]
    action_index: list[list[int]]
    value: list[list[float]]
    gap_index: list[list[int]]
    user_embedding: list[list[float]]
    tolerance: float = Field(default=GOLDEN_TOLERANCE, gt=0, le=0.05, description="Largest allowed difference.")

    def inputs(self) -> Inputs:
        """Encoder inputs, (B, L) each."""
        return {
            "item_index": np.array(self.item_index, np.int32),
            "action_index": np.array(self.action_index, np.int32),
            "value": np.array(self.value, np.float32),
            "gap_index": np.array(self.gap_index, np.int32),
        }

    def difference(self, embeddings: NDArray[np.float32]) -> float:
        """Largest absolute difference to the golden embeddings; infinite for another shape or non-finite numbers."""
        expected = np.array(self.user_embedding, np.float32)
        if embeddings.shape != expected.shape or not np.isfinite(embeddings).all():
            return float("inf")
        return float(np.abs(embeddings - expected).max())


class Confidence(FrozenModel):
    """Calibration: margin of a user's segment (`server.core.segments.margin`) → confidence in the segment.

    `margins` rise within 0 and 1. For each margin, `stays` is the share of users who were in the same segment before
    their latest events; between two margins it is interpolated. Fitted by `training.segments.confidence`.
    """

    margins: tuple[float, ...] = Field(min_length=1)
    stays: tuple[float, ...] = Field(min_length=1)
    min_confidence: float = Field(ge=0, le=1)
    min_history: int = Field(ge=0)

    @model_validator(mode="after")
    def _is_a_curve(self) -> Self:
        if len(self.margins) != len(self.stays):
            raise ValueError(
                f"there are {len(self.margins)} margins and {len(self.stays)} stays: their numbers must be equal"
            )
        for name, values in (("margins", self.margins), ("stays", self.stays)):
            if not all(0 <= low <= high <= 1 for low, high in zip((0.0, *values), values, strict=False)):
                raise ValueError(f"{name} must be ascending numbers from 0 to 1")
        return self

    def at(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """The confidence, 0 to 1, of each margin (B,)."""
        confidence: NDArray[np.float64] = np.interp(margins, self.margins, self.stays)
        return confidence


class TrainedOn(FrozenModel):
    """The log that a release was trained on, after cleaning."""

    first_event_time: AwareDatetime | None = Field(default=None, description="None for a log without a clock.")
    last_event_time: AwareDatetime | None = Field(default=None, description="None for a log without a clock.")
    user_count: int = Field(ge=1)
    event_count: int = Field(ge=1)
    files: tuple[str, ...] = Field(default=(), description="Names of the input files, without their directories.")


class Manifest(FrozenModel):
    """`manifest.json`."""

    schema_version: int = SCHEMA_VERSION
    release: int = Field(ge=1, lt=10**18)
    created_time: AwareDatetime
    data_cutoff_time: AwareDatetime | None = Field(
        default=None, description="Time of the newest event; none for a log without a clock."
    )
    trained_on: TrainedOn | None = Field(default=None, description="None for a release that was made by hand.")
    forget_after: AwareDatetime | None = Field(
        default=None, description="From then on all its events are older than the retention; none without a retention."
    )
    parent_release: int = Field(default=0, ge=0)
    embedding_dim: int = Field(ge=1, description="Length of an item embedding; a user embedding may be longer.")
    max_length: int = Field(ge=1)
    item_count: int = Field(ge=1)
    segment_count: int = Field(ge=1)
    hybrid_weight: float = Field(
        ge=0, le=1, description="Weight of the personal score in the hybrid; the segment has the rest."
    )
    figures: tuple[Figure, ...] = Field(default=(), description="Quality on targets that training did not see.")
    confidence: Confidence | None = Field(
        default=None, description="None when there were too few users to calibrate it."
    )
    min_segment_size: int = Field(default=0, ge=0, description="Segments and flows of fewer users are not published.")
    stands_by: str = Field(default="", description="Why it answers nobody until it is given traffic; empty if it may.")
    forced: str = Field(
        default="", description="Why it may answer although a rule predicts better, in a person's words."
    )
    files: dict[str, FileRecord]
    golden: Golden


def action_index_of(preprocessing: Preprocessing) -> HashIndex:
    """Hash of an action → action index, from 1; an action is also found by its other names in the log."""
    aliases = {raw: action.name for action in preprocessing.actions for raw in action.raw_names}
    return HashIndex.with_aliases([action.name for action in preprocessing.actions], aliases)


@dataclass(frozen=True, slots=True)
class RankedItems:
    """Items best first: `item_index` int32 (M,) and `score` float32 (M,), the log-probability."""

    item_index: NDArray[np.int32]
    score: NDArray[np.float32]


class SegmentNames:
    """Names that people gave to segments, by segment id; a server's releases share one, whose `by_id` it replaces."""

    def __init__(self) -> None:
        self.by_id: Mapping[int, str] = {}

    def of(self, segment: SegmentProfile) -> str:
        """The given name of a segment, else its label."""
        return self.by_id.get(segment.segment_id) or segment.label


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
    next_visit: NextVisitModel | None = None
    search_lists: SearchLists | None = None
    names: SegmentNames = field(default_factory=SegmentNames, compare=False)
    rules: RulesInForce = field(default_factory=RulesInForce, compare=False)

    @property
    def number(self) -> int:
        return self.manifest.release

    @cached_property
    def item_ids(self) -> list[str]:
        """Item ids by row (V); row r is item index r + 1."""
        return self.items["item_id"].to_list()

    @cached_property
    def titles(self) -> list[str]:
        """Titles by row (V); empty for an item without title."""
        return self.items["title"].fill_null("").to_list()

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Item id → item index, from 1."""
        return {item_id: row + 1 for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def item_index(self) -> HashIndex:
        """Hash of an item id → item index, from 1; for the columns of histories."""
        return HashIndex.of_hashes(self.items[ITEM_HASH].to_numpy())

    @cached_property
    def action_index(self) -> HashIndex:
        """Hash of an action → action index, from 1; for the columns of histories."""
        return action_index_of(self.preprocessing)

    @cached_property
    def action_names(self) -> frozenset[str]:
        """All names of the actions that the release knows."""
        actions = self.preprocessing.actions
        return frozenset(name for action in actions for name in (action.name, *action.raw_names))

    @cached_property
    def action_weights(self) -> NDArray[np.float32]:
        """Weight by action index, (A + 1,); 0 for an unknown action, index 0."""
        return np.array([0.0, *(action.weight for action in self.preprocessing.actions)], np.float32)

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
    def seller_rows(self) -> dict[str, NDArray[np.intp]]:
        """Seller → rows of its items; empty for a catalogue without sellers."""
        if SELLER not in self.items.columns:
            return {}
        sold = self.items.with_row_index("row").select("row", SELLER).drop_nulls()
        groups = sold.group_by(SELLER, maintain_order=True).agg("row")
        return {name: np.array(rows, np.intp) for name, rows in groups.iter_rows()}

    @cached_property
    def category_counts(self) -> NDArray[np.float32]:
        """How many categories each item has, (V,)."""
        counts = np.zeros(len(self.item_ids), np.float32)
        for rows in self.category_rows.values():
            counts[rows] += 1
        return counts

    @cached_property
    def segment_lists(self) -> dict[int, SegmentList]:
        """Segment id → its items by row."""
        return {
            segment_id: SegmentList((items.item_index - 1).astype(np.intp), items.score)
            for segment_id, items in self.segment_items.items()
        }

    @cached_property
    def variant_groups(self) -> NDArray[np.int32] | None:
        """The row of the first item of each item's group, (V,); None if no two items are of one group."""
        groups = self.items[GROUP].to_numpy().astype(np.int32)
        return None if np.array_equal(groups, np.arange(len(groups))) else groups

    @cached_property
    def trend(self) -> NDArray[np.float32] | None:
        """Trend of each item, which is added to its personal score, (V,); None for a release without trend."""
        return self.items[TREND].to_numpy().astype(np.float32) if TREND in self.items.columns else None

    @cached_property
    def item_tables(self) -> ItemTables:
        """What the next-visit ranking reads of the items; the statistics are 0 for a release without this ranking."""
        if self.next_visit is None:
            statistics = np.zeros((len(self.item_ids), len(ITEM_STATISTICS)), np.float32)
        else:
            statistics = self.items.select(ITEM_STATISTICS).to_numpy().astype(np.float32)
        return ItemTables(self.item_embeddings, self.popularity, statistics)

    @cached_property
    def item_search(self) -> ItemSearch:
        """Search over the items by personal score; see `search`."""
        # The trend is one more dimension, by which `search` multiplies 1.
        items = self.item_embeddings if self.trend is None else np.column_stack([self.item_embeddings, self.trend])
        return ItemSearch(items, self.search_lists)

    def search(
        self, embeddings: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """Rows of the `count` items with the highest personal scores for each user embedding (B, D): (B, count).

        Only `allowed` items (V,) are found, if given; there are fewer columns if fewer items are allowed. A release
        with `search_lists` finds nearly all of the best.
        """
        if self.trend is not None:
            embeddings = np.column_stack([embeddings, np.ones(len(embeddings), np.float32)])
        return self.item_search.search(embeddings, count, allowed)

    def personal_scores(self, embeddings: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Inner products of user embeddings (D,) or (B, D) with items (R,), plus their trend: (R,) or (B, R)."""
        scores: NDArray[np.float32] = embeddings @ self.item_embeddings[rows].T
        return scores if self.trend is None else scores + self.trend[rows]

    def warm(self) -> None:
        """Compute all cached properties now, so that no request has to."""
        for name, attribute in vars(type(self)).items():
            if isinstance(attribute, cached_property):
                getattr(self, name)
        self.item_index.warm()


def with_item_hashes(items: pl.DataFrame) -> pl.DataFrame:
    """A catalogue with the column `ITEM_HASH`."""
    return items.with_columns(pl.Series(ITEM_HASH, hashes_of(items["item_id"].to_list())))
