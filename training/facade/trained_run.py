"""A run that is trained and segmented, and what it answers without a server."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from server.core.release import Release
from training.errors import RunError
from training.evaluation.evaluate import evaluate
from training.facade.tables import table_files
from training.offline.recommend import popular_items, query_of, recommendations, texts
from training.offline.users import OfflineUsers
from training.publish.publish import publish, unpublished_release
from training.repository import newest_release, stands_by
from training.runs import Run
from training.segments.result import Segmentation, same_segments
from training.segments.segment import segment

if TYPE_CHECKING:
    from training.facade.tables import Table

_FIGURES = {
    "protocol": pl.String(),
    "method": pl.String(),
    "metric": pl.String(),
    "k": pl.Int64(),
    "value": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
}
_SEGMENTS: dict[str, pl.DataType] = {
    "segment_id": pl.Int64(),
    "label": pl.String(),
    "description": pl.String(),
    "user_count": pl.Int64(),
    "share": pl.Float64(),
    "traits": pl.List(pl.String),
    "top_items": pl.List(pl.String),
    "particular_items": pl.List(pl.String),
}


def open_run(path: str | Path) -> "TrainedRun":
    """The run in a directory, such as `runs/0001-run`. Raises RunError if there is none, or it has no segments."""
    directory = Path(path).resolve()
    run = Run.open(directory.parent, directory.name)
    run.require("segment")
    return TrainedRun(run)


@dataclass(frozen=True)
class TrainedRun:
    """A segmented run. Answers are computed here, with the code of the server; all tables are of Polars."""

    run: Run

    @property
    def path(self) -> Path:
        """The directory of the run."""
        return self.run.path

    def evaluate(self) -> pl.DataFrame:
        """Figures of rules, of the encoder and of the strategies of `recommend`, on events that training did not see.

        Columns: protocol, method, metric, k, value, and its 95 % bounds low and high where they were measured.
        Raises RunError for a log without test targets.
        """
        try:
            self.run.require("evaluate")
        except RunError:
            evaluate(self.run)
        figures = (*self.run.quality("evaluate"), *self.run.quality("segment"))
        return pl.DataFrame([figure.model_dump() for figure in figures], _FIGURES)

    def segments(self) -> pl.DataFrame:
        """A row for each segment: id, label, description, size, traits as `kind: name`, and ids of its items."""
        profiles = Segmentation.read(self.run.require("segment")).profiles
        rows = [
            {
                **profile.model_dump(include={"segment_id", "label", "description", "user_count", "share"}),
                "traits": [f"{trait.kind}: {trait.name}" for trait in profile.traits],
                "top_items": [item.item_id for item in profile.top_items],
                "particular_items": [item.item_id for item in profile.particular_items],
            }
            for profile in profiles
        ]
        return pl.DataFrame(rows, _SEGMENTS)

    def members(self) -> pl.DataFrame:
        """A row for each user: user_id, segment_id, distance, confidence 0 to 1, runner-up, and whether confident."""
        return pl.read_parquet(self.run.require("segment") / "assignments.parquet")

    def embed(self, events: "Table | None" = None) -> pl.DataFrame:
        """`user_id` and `embedding` (D float32) of the users of the run's log, or of other `events`.

        Users of whose events the run knows none are left out. Raises LogError for unusable events.
        """
        return self._users(events).vectors()

    def recommend(
        self,
        user_ids: Sequence[str] | None = None,
        events: "Table | None" = None,
        top_k: int = 10,
        **filters: Any,
    ) -> pl.DataFrame:
        """The best `top_k` items of each user: user_id, rank from 1, item_id, title, score, reason.

        The users are those of the run's log, or of other `events`, all or those of `user_ids`. As from a server, a user
        without events gets popular items. `filters` are `strategy` (hybrid, personal, segment or popular),
        `exclude_seen`, `exclude_item_ids`, `exclude_categories`, `include_categories`, `candidate_item_ids`,
        `diversity` (0 to 1) and `include_variants`. Scores are comparable within one user.

        Raises ConfigError for an unknown filter or a wrong value, LogError for unusable events.
        """
        query = query_of(top_k, filters)
        wanted = None if user_ids is None else list(dict.fromkeys(texts("user_ids", user_ids)))
        users = self._users(events)
        if wanted is None:
            return pl.concat(recommendations(self._release, users, query))
        users = users.only(wanted)
        known = set(users.user_ids)
        others = popular_items(self._release, [one for one in wanted if one not in known], query)
        found = pl.concat([*recommendations(self._release, users, query), others])
        return pl.DataFrame({"user_id": wanted}).join(found, on="user_id", how="inner", maintain_order="left_right")

    def publish(self, repository: str | Path) -> int:
        """Publish the run as the next release of a model repository; returns the release number.

        If the repository has a release, the run is segmented again first, so that segment ids continue. Warns if the
        release stands by, since a rule of one line predicts better. Raises PublishError when a gate fails.
        """
        directory = Path(repository)
        newest, segmentation = newest_release(directory), Segmentation.read(self.run.require("segment"))
        continues = (newest.number if newest else 0) == segmentation.parent_release
        if not continues and not (newest and same_segments(self.run, segmentation, newest)):
            segment(self.run, directory)
            self.__dict__.pop("_release", None)
        number = publish(self.run, directory)
        if reason := stands_by(directory, number):
            warnings.warn(
                f"Release {number} stands by and answers nobody until it gets traffic. {reason}", stacklevel=2
            )
        return number

    @cached_property
    def _release(self) -> Release:
        return unpublished_release(self.run)

    def _users(self, events: "Table | None") -> OfflineUsers:
        if events is None:
            return OfflineUsers.of_run(self.run)
        with table_files() as files:
            users, _ = OfflineUsers.of_log(self.run, files.log(events), self._release)
            return users
