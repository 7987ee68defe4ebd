"""Settings of what becomes of the rows of a log: `[actions]` and `[clean]`."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from server.core.frozen_model import FrozenModel
from server.core.preprocessing import VALUE_MAX


class ActionSetting(FrozenModel):
    """The name of an action, and the weight of one such event for an item."""

    name: str | None = Field(default=None, min_length=1, description="New name; left out: the name in the log.")
    weight: float = Field(allow_inf_nan=False, description="Negative for returns and dislikes.")


def _weight_alone(raw: object) -> object:
    return {"weight": raw} if isinstance(raw, int | float) and not isinstance(raw, bool) else raw


ActionEntry = Annotated[ActionSetting, BeforeValidator(_weight_alone)]
"""A weight alone, or a name and a weight."""


def _method_alone(raw: object) -> object:
    return {"method": raw} if isinstance(raw, str) else raw


class Missing(FrozenModel):
    """Treatment of missing values in a column.

    `keep` leaves them missing, and is only for `value`. `interpolate` uses the line between the user's neighbouring
    events. Statistics are computed on the training part of the log.
    """

    method: Literal["keep", "drop", "constant", "mean", "median", "most_frequent", "interpolate"]
    fill: str | float | None = Field(default=None, description="The value for the method `constant`.")

    @model_validator(mode="after")
    def _constant_has_fill(self) -> Self:
        if (self.method == "constant") != (self.fill is not None):
            raise ValueError("the method `constant` needs `fill`, and no other method takes `fill`")
        return self


MissingSetting = Annotated[Missing, BeforeValidator(_method_alone)]
_OF_USERS = ("drop", "constant")
_OF_TEXT = (*_OF_USERS, "most_frequent")


class MissingColumns(FrozenModel):
    """Treatment of missing values, column by column."""

    user_id: MissingSetting = Missing(method="drop")
    item_id: MissingSetting = Missing(method="drop")
    action: MissingSetting = Missing(method="drop")
    value: MissingSetting = Missing(method="keep")
    timestamp: MissingSetting = Missing(method="drop")

    @model_validator(mode="after")
    def _methods_fit_columns(self) -> Self:
        for column in ("user_id", "item_id", "action"):
            missing: Missing = getattr(self, column)
            allowed = _OF_USERS if column == "user_id" else _OF_TEXT
            if missing.method not in allowed:
                raise ValueError(f"{column} can be {' or '.join(allowed)}, not {missing.method}")
            if missing.method == "constant" and not (isinstance(missing.fill, str) and missing.fill.strip()):
                raise ValueError(f"{column} needs a text as `fill`")
        for column in ("value", "timestamp"):
            missing = getattr(self, column)
            if isinstance(missing.fill, str):
                raise ValueError(f"{column} needs a number as `fill`; a time is milliseconds since 1970")
            if missing.fill is not None and not abs(missing.fill) <= VALUE_MAX:
                raise ValueError(f"{column} needs a number from {-VALUE_MAX:g} to {VALUE_MAX:g} as `fill`")
        if self.timestamp.method == "keep":
            raise ValueError("an event without a time cannot be kept; drop it, or fill it in")
        return self


class Outliers(FrozenModel):
    """Treatment of events with an outlying value."""

    method: Literal["none", "z_score", "iqr", "isolation_forest"] = "none"
    action: Literal["drop", "clip"] = "clip"
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="z_score: standard deviations, default 3. iqr: interquartile ranges beyond the quartiles, "
        "default 1.5. isolation_forest: share of outliers, at most 0.5, default scikit-learn's `auto`.",
    )

    @model_validator(mode="after")
    def _share_below_half(self) -> Self:
        if self.method == "isolation_forest" and self.threshold is not None and self.threshold > 0.5:
            raise ValueError("the threshold of isolation_forest is a share, at most 0.5")
        return self


OutlierSetting = Annotated[Outliers, BeforeValidator(_method_alone)]


class Clean(FrozenModel):
    """Cleaning of the log, and scaling of the value."""

    drop_duplicates: bool = True
    missing: MissingColumns = MissingColumns()
    outliers: OutlierSetting = Outliers()
    normalise: Literal["none", "z_score", "min_max", "robust", "log"] = "log"
    min_events_per_user: int = Field(default=1, ge=1, description="Users with fewer events are dropped.")
    min_events_per_item: int = Field(default=1, ge=1, description="Items with fewer events are dropped.")
    exclude_seen: bool | None = Field(
        default=None,
        description="Do not recommend items of the user's history; left out: chosen from the log.",
    )
