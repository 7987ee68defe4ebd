"""Settings of what becomes of the rows of a log: `[actions]` and `[clean]`."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from server.core.frozen_model import FrozenModel
from server.core.preprocessing import VALUE_MAX


class ActionSetting(FrozenModel):
    """The name of an action, and the weight of one such event for an item."""

    name: str | None = Field(
        default=None,
        min_length=1,
        description="New name; left out: the name in the log.",
        examples=["purchase"],
        json_schema_extra={"touch": "Actions are numbers or codes; answers and reports should show words."},
    )
    weight: float = Field(
        allow_inf_nan=False,
        description="Weight of one event for its item. Negative for returns and dislikes.",
        examples=[2.0],
        json_schema_extra={
            "touch": "Some actions say more than others: a purchase more than a view.",
            "range": "any finite number",
            "kind": "number (alone, or in a table)",
        },
    )


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

    method: Literal["keep", "drop", "constant", "mean", "median", "most_frequent", "interpolate"] = Field(
        description="What becomes of events without a value in this column.",
        json_schema_extra={"touch": "See the column."},
    )
    fill: str | float | None = Field(
        default=None,
        description="The value for the method `constant`.",
        examples=["view"],
        json_schema_extra={"touch": "The method is `constant`."},
    )

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

    user_id: MissingSetting = Field(
        default=Missing(method="drop"),
        description="Events without a user.",
        json_schema_extra={
            "touch": "Events without a user belong to one known account: `constant`.",
            "range": "`drop`, `constant`",
            "kind": "method or table",
        },
    )
    item_id: MissingSetting = Field(
        default=Missing(method="drop"),
        description="Events without an item.",
        json_schema_extra={
            "touch": "Events without an item mean something by themselves: `constant`.",
            "range": "`drop`, `constant`, `most_frequent`",
            "kind": "method or table",
        },
    )
    action: MissingSetting = Field(
        default=Missing(method="drop"),
        description="Events without an action.",
        json_schema_extra={
            "touch": "Actions were not always written: `constant` with a `fill`, or `most_frequent`.",
            "range": "`drop`, `constant`, `most_frequent`",
            "kind": "method or table",
        },
    )
    value: MissingSetting = Field(
        default=Missing(method="keep"),
        description="Events without a value.",
        json_schema_extra={
            "touch": "Prices are missing at random and the value matters: `median` or `interpolate`.",
            "range": "all methods",
            "kind": "method or table",
        },
    )
    timestamp: MissingSetting = Field(
        default=Missing(method="drop"),
        description="Events without a time.",
        json_schema_extra={
            "touch": "Few times are missing in a log whose rows are in order: `interpolate`.",
            "range": "all but `keep`",
            "kind": "method or table",
        },
    )

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

    method: Literal["none", "z_score", "iqr", "isolation_forest"] = Field(
        default="none",
        description="How outlying values are found.",
        json_schema_extra={"touch": "The account shows values that cannot be true, such as a price of 10,000,000."},
    )
    action: Literal["drop", "clip"] = Field(
        default="clip",
        description="What becomes of an event with an outlying value: dropped, or its value cut to the limit.",
        json_schema_extra={"touch": "An outlying value makes the whole event suspect: `drop`."},
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="z_score: standard deviations, default 3. iqr: interquartile ranges beyond the quartiles, "
        "default 1.5. isolation_forest: share of outliers, at most 0.5, default scikit-learn's `auto`.",
        examples=[3.0],
        json_schema_extra={"touch": "Too many or too few events are found."},
    )

    @model_validator(mode="after")
    def _share_below_half(self) -> Self:
        if self.method == "isolation_forest" and self.threshold is not None and self.threshold > 0.5:
            raise ValueError("the threshold of isolation_forest is a share, at most 0.5")
        return self


OutlierSetting = Annotated[Outliers, BeforeValidator(_method_alone)]


class Clean(FrozenModel):
    """Cleaning of the log, and scaling of the value."""

    drop_duplicates: bool = Field(
        default=True,
        description="Equal rows (user, item, action, value, time) are one event.",
        json_schema_extra={"touch": "Equal rows are real events, as in logs with coarse times."},
    )
    missing: MissingColumns = MissingColumns()
    outliers: OutlierSetting = Field(
        default=Outliers(),
        description="Treatment of outlying values: a method, or a table as below.",
        json_schema_extra={
            "touch": "As `[clean.outliers] method`, which stands for the table.",
            "kind": "method or table",
        },
    )
    normalise: Literal["none", "z_score", "min_max", "robust", "log"] = Field(
        default="log",
        description="Scaling of the value before the encoder reads it; learned on the training part.",
        json_schema_extra={"touch": "`none` for values on one fair scale, such as ratings of 1 to 5."},
    )
    min_events_per_user: int = Field(
        default=1,
        ge=1,
        description="Users with fewer events are dropped.",
        json_schema_extra={"touch": "A crowd of one-time visitors slows training and blurs segments: 2 to 5."},
    )
    min_events_per_item: int = Field(
        default=1,
        ge=1,
        description="Items with fewer events are dropped.",
        json_schema_extra={"touch": "The catalogue has a long tail that nobody will be recommended: 2 to 10."},
    )
    exclude_seen: bool | None = Field(
        default=None,
        description="Do not recommend items of the user's history; left out: chosen from the log.",
        examples=[True],
        json_schema_extra={"touch": "You know whether people buy things again: groceries no, films yes."},
    )
