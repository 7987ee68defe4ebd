"""What `segrec-train diff` tells of two releases, as it is written for machines; see `training.reports.diff.diff`."""

from typing import Literal

from pydantic import Field

from server.core.frozen_model import FrozenModel
from server.core.profiles import Migration

SameTest = Literal["same", "different", "unknown"]


class SegmentComparison(FrozenModel):
    """Shares of the users who are in a segment by each release, and of those of before who stay; None: not told.

    A segment that a release does not have has no label there.
    """

    segment_id: int
    label_before: str | None
    label_after: str | None
    share_before: float | None
    share_after: float | None
    stay: float | None


class Sureness(FrozenModel):
    """Shares of users who have a confident segment by each release, and of those who are no longer or newly sure."""

    before: float
    after: float
    lost: float
    gained: float


class Items(FrozenModel):
    """The items that `Recommend` answers with, as many as it gives by default.

    `overlap` is the mean share of a user's items that are in both lists, `quantiles` the same at 5, 25, 50, 75 and
    95 % of users, `none_in_common` the share of users without any; `counts` is the share of users by how many items are
    in both, from 0. `moved_places` is how many places a common item moves on average; scores of common items after less
    those before: mean, and at 5 and 95 %. None where no item is common.
    """

    top_k: int
    overlap: float = Field(ge=0, le=1)
    quantiles: tuple[float, ...]
    none_in_common: float = Field(ge=0, le=1)
    counts: tuple[float, ...]
    moved_places: float | None
    score_shift: float | None
    score_shift_interval: tuple[float, float] | None


class Vectors(FrozenModel):
    """User embeddings side by side.

    `neighbours` is the share of a user's nearest users that both releases agree on, `by_chance` what two random
    orders give; None for too few users. Cosines, mean and at 5 %, are told for one and the same encoder only: the
    coordinates of two trainings have nothing to do with each other.
    """

    same_encoder: bool
    neighbours: float | None
    by_chance: float | None
    cosine: float | None
    cosine_low: float | None


class Catalogue(FrozenModel):
    """Items of each release, those that came and went, and their share of all events of the release that has them."""

    before: int
    after: int
    new: int
    new_popularity: float
    gone: int
    gone_popularity: float


class QualityFigure(FrozenModel):
    """A figure of the manifests, larger is better; None where a release does not have it."""

    name: str
    before: float | None
    after: float | None

    @property
    def pair(self) -> tuple[float | None, float | None]:
        """Both."""
        return self.before, self.after


class Diff(FrozenModel):
    """Everything that is told of two releases; `users` of `user_count` were asked about, `compared` are known to both.

    Shares are of the compared users. `microseconds` is the encoders' time for a user on one thread, before and after.
    """

    before: int
    after: int
    users: int
    user_count: int
    compared: int
    only_before: int
    only_after: int
    changed: float = Field(ge=0, le=1, description="Share of users who are in another segment.")
    segments: tuple[SegmentComparison, ...]
    migration: Migration
    min_segment_size: int
    sureness: Sureness | None
    items: Items
    vectors: Vectors
    catalogue: Catalogue
    microseconds: tuple[float, float]
    quality: tuple[QualityFigure, ...]
    same_test: SameTest
