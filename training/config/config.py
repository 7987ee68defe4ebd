"""All settings of a run, read once from a TOML file."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from server.core.frozen_model import FrozenModel
from training.config.cleaning import ActionEntry, Clean
from training.config.columns import Columns, ItemColumns, UserColumns
from training.config.log import PrivacySettings, SplitSettings, Text, VisitSettings
from training.config.publish import PublishSettings
from training.config.report import ReportSettings
from training.config.segment import SegmentSettings
from training.config.toml import load_settings
from training.config.tracking import TrackingSettings
from training.config.train import TrainSettings


class Config(FrozenModel):
    """All settings of a run."""

    columns: Columns = Columns()
    actions: dict[str, ActionEntry] = Field(
        default_factory=dict,
        description="Weights of actions by name; another action has the weight that its name suggests, or 1.",
        examples=[{"purchase": 2.0, "return": -1.0}],
        json_schema_extra={"touch": "Some actions say more than others, or are codes that should have names."},
    )
    items: ItemColumns = ItemColumns()
    users: UserColumns = UserColumns()
    clean: Clean = Clean()
    visits: VisitSettings = VisitSettings()
    split: SplitSettings = SplitSettings()
    text: Text = Text()
    train: TrainSettings = TrainSettings()
    segment: SegmentSettings = SegmentSettings()
    privacy: PrivacySettings = PrivacySettings()
    publish: PublishSettings = PublishSettings()
    tracking: TrackingSettings = TrackingSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="after")
    def _times_are_known(self) -> Self:
        if self.split.method == "time" and self.clean.missing.timestamp.method == "interpolate":
            raise ValueError("clean.missing.timestamp interpolate reads later times; with split.method time, drop them")
        return self


def load_config(path: Path | None) -> Config:
    """Read a TOML file; None gives the defaults. Raises ConfigError."""
    return Config() if path is None else load_settings(path, Config)
