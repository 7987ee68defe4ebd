"""The configuration of a run, read once from a TOML file; without a file, all settings have their defaults.

One module for each group of sections: `columns`, `cleaning`, `log`, `train`, `segment`, `publish`, `tracking` and
`report`.
"""

from training.config.cleaning import ActionSetting, Clean, Missing, MissingColumns, Outliers
from training.config.columns import Columns, ItemColumns, UserColumns
from training.config.config import Config, load_config
from training.config.log import PrivacySettings, SplitSettings, Text, VisitSettings
from training.config.publish import PublishSettings
from training.config.report import ReportSettings
from training.config.segment import Naming, SegmentSettings
from training.config.toml import checked_settings, load_settings
from training.config.tracking import TrackingSettings
from training.config.train import TrainSettings

__all__ = [
    "ActionSetting",
    "Clean",
    "Columns",
    "Config",
    "ItemColumns",
    "Missing",
    "MissingColumns",
    "Naming",
    "Outliers",
    "PrivacySettings",
    "PublishSettings",
    "ReportSettings",
    "SegmentSettings",
    "SplitSettings",
    "Text",
    "TrackingSettings",
    "TrainSettings",
    "UserColumns",
    "VisitSettings",
    "checked_settings",
    "load_config",
    "load_settings",
]
