"""The figures of `segrec-train diff`, which are also its JSON output; see `training.reports.diff.diff`."""

from typing import Literal

from pydantic import Field

from server.core.frozen_model import FrozenModel
from server.core.profiles import Migration
from training.data.account import Account

SameTest = Literal["same", "different", "unknown"]


class SegmentComparison(FrozenModel):
    """Shares of users in a segment by each release, and `stay`: the share of its users before who stay in it.

    A share is None if it is of too few users. A label is None if the release does not have the segment.
    """

    segment_id: int
    label_before: str | None
    label_after: str | None
    share_before: float | None
    share_after: float | None
    stay: float | None


class ConfidentShares(FrozenModel):
    """Shares of users with a confident segment by each release; shares of users who lose and who gain confidence."""

    before: float
    after: float
    lost: float
    gained: float


class Items(FrozenModel):
    """The first `top_k` items that `Recommend` returns to users by default.

    `overlap`: mean share of a user's items that are in both lists. `quantiles`: this share at 5, 25, 50, 75 and 95 % of
    users. `none_in_common`: share of users without a common item. `counts`: shares of users by their number of common
    items, from 0. `moved_places`: mean number of places that a common item moves. `score_shift`: mean change of the
    score of a common item; `score_shift_interval`: its 5 % and 95 % quantiles. None if no item is common.
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
    """User embeddings of both releases.

    `neighbours`: share of a user's nearest users on which both releases agree; `by_chance`: the share for two random
    orders; None for too few users. `cosine` and `cosine_low`: mean and 5 % quantile of the cosine of a user's two
    embeddings; None for two encoders, whose coordinates cannot be compared.
    """

    same_encoder: bool
    neighbours: float | None
    by_chance: float | None
    cosine: float | None
    cosine_low: float | None


class Catalogue(FrozenModel):
    """Numbers of items, of new items and of items that are gone, with their share of the events of their release."""

    before: int
    after: int
    new: int
    new_popularity: float
    gone: int
    gone_popularity: float


class QualityFigure(FrozenModel):
    """A figure of the manifests by its parts, larger is better; None if a release does not have it."""

    protocol: str
    method: str
    metric: str
    k: int | None
    before: float | None
    after: float | None

    @property
    def pair(self) -> tuple[float | None, float | None]:
        return self.before, self.after


class Diff(FrozenModel):
    """The comparison of two releases, over `users` drawn from the `user_count` users of a log.

    `compared` users are known to both releases; shares are of these. `microseconds` is the time of each encoder per
    user on one thread.
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
    sureness: ConfidentShares | None
    items: Items
    vectors: Vectors
    catalogue: Catalogue
    microseconds: tuple[float, float]
    quality: tuple[QualityFigure, ...]
    same_test: SameTest
    account: Account | None = Field(default=None, description="Which rows of the log the users were drawn from.")
