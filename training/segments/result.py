"""The result of the segment stage, `segmentation.json` of a run, which the publish stage reads."""

from datetime import datetime
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field

from server.core.figures import Figure
from server.core.frozen_model import FrozenModel
from server.core.profiles import SegmentProfile
from server.core.release import Release
from training.ranking.item_lists import ListOverlap
from training.runs import Run, write_atomically
from training.segments.trust import SegmentTrust

_FILE = "segmentation.json"


class Segmentation(FrozenModel):
    """The segments of one run. `profiles` are in the order of the centroids and hold no growth over releases."""

    profiles: tuple[SegmentProfile, ...]
    parent_release: int = Field(ge=0, description="The release that segment ids were matched to; 0 for none.")
    born: tuple[int, ...] = Field(description="Ids of segments that the previous release did not have.")
    retired: tuple[int, ...] = Field(description="Ids of the previous release's segments that do not continue.")
    engine: str = Field(description="The K-means engine that ran.")
    inertia: float = Field(ge=0, description="Sum of squared distances to the centroids; smaller is better.")
    iterations: int = Field(ge=0)
    half_life: float = Field(gt=0, description="Of an event's weight, in days; in events for a log without a clock.")
    prior: float = Field(gt=0, description="Weight of global popularity in per-segment items, in events.")
    hybrid_weight: float = Field(ge=0, le=1)
    data_cutoff_time: datetime | None = Field(description="Time of the newest event; none for a log without a clock.")
    figures: tuple[Figure, ...] = Field(description="Quality of each strategy on test targets.")
    min_segment_size: int = Field(default=0, ge=0, description="Least users of a segment, unless the log has fewer.")
    confidence_error: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Expected calibration error of the confidence on held-out users; smaller is better.",
    )
    doubtful_share: float | None = Field(
        default=None, ge=0, le=1, description="Share of users without a confident segment; none without a calibration."
    )
    short_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of users with fewer than `min_history` events."
    )
    top_items_overlap: ListOverlap | None = Field(
        default=None, description="Of two segments' lists of top items; none with fewer than two lists."
    )
    particular_items_overlap: ListOverlap | None = Field(
        default=None, description="Of two segments' lists of particular items; none with fewer than two lists."
    )
    trust: tuple[SegmentTrust, ...] = Field(
        default=(), description="How far each segment can be relied on; empty for a single segment."
    )
    notes: tuple[str, ...] = Field(default=(), description="Warnings and explanations, as sentences.")

    @property
    def overlap_figures(self) -> dict[str, float]:
        """The figures of both overlaps by name, such as `top_items_overlap_mean`; empty without an overlap."""
        overlaps = {"top_items": self.top_items_overlap, "particular_items": self.particular_items_overlap}
        return {
            f"{lists}_overlap_{name}": value
            for lists, overlap in overlaps.items()
            if overlap
            for name, value in overlap.model_dump().items()
        }

    def write(self, directory: Path) -> None:
        """Write `segmentation.json` to the stage's directory."""
        write_atomically(directory / _FILE, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read `segmentation.json` of the stage's directory."""
        return cls.model_validate_json((directory / _FILE).read_bytes())


def same_segments(run: Run, segmentation: Segmentation, release: Release) -> bool:
    """Whether a release has the run's segment ids and centroids, as when a run is published again."""
    centroids = np.load(run.path / "segment" / "centroids.npy", allow_pickle=False)
    ids = [[profile.segment_id for profile in profiles] for profiles in (segmentation.profiles, release.segments)]
    return ids[0] == ids[1] and np.array_equal(centroids, release.centroids)
