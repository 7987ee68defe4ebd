"""The contract of a nightly log: limits within which it must lie."""

from datetime import date, datetime
from typing import Literal

from pydantic import Field

from server.core.frozen_model import FrozenModel

Role = Literal["user_id", "item_id", "action", "value", "timestamp"]


class RowLimits(FrozenModel):
    """Limits of the number of rows; those against the last run are shares of the rows of its log."""

    min: int | None = Field(
        default=None,
        ge=0,
        description="Least number of rows.",
        examples=[10000],
    )
    max: int | None = Field(
        default=None,
        ge=0,
        description="Largest number of rows.",
        examples=[5000000],
    )
    min_of_last: float | None = Field(
        default=None,
        ge=0,
        description="Least share of the rows of the last run's log.",
        examples=[0.5],
    )
    max_of_last: float | None = Field(
        default=None,
        ge=0,
        description="Largest share of the rows of the last run's log.",
        examples=[2.0],
    )


class Newest(FrozenModel):
    """Limit of the age of the newest event; times in the future do not count."""

    max_age_hours: float | None = Field(
        default=None,
        gt=0,
        description="Largest age of the newest event, hours.",
        examples=[30.0],
    )


class MissingShares(FrozenModel):
    """Largest shares of rows without a user, an item and so on."""

    user_id: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Largest share of rows without a user.",
        examples=[0.05],
    )
    item_id: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Largest share of rows without an item.",
        examples=[0.05],
    )
    action: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Largest share of rows without an action.",
        examples=[0.05],
    )
    value: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Largest share of rows without a value.",
        examples=[0.05],
    )
    timestamp: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Largest share of rows without a time.",
        examples=[0.05],
    )


class ValueRange(FrozenModel):
    """Range of the values, and the largest share of them that may lie outside."""

    min: float | None = Field(
        default=None,
        description="Least value.",
        examples=[0.0],
    )
    max: float | None = Field(
        default=None,
        description="Largest value.",
        examples=[10000.0],
    )
    max_share_outside: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Largest share of the values outside.",
    )


class TimeRange(FrozenModel):
    """Range of the times, UTC, and the largest share of them that may lie outside."""

    min: datetime | date | None = Field(
        default=None,
        description="Earliest time, UTC.",
        examples=[datetime.fromisoformat("2020-01-01T00:00:00")],
        json_schema_extra={"kind": "time or date"},
    )
    max: datetime | date | None = Field(
        default=None,
        description="Latest time, UTC.",
        examples=[datetime.fromisoformat("2030-01-01T00:00:00")],
        json_schema_extra={"kind": "time or date"},
    )
    max_share_outside: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Largest share of the times outside.",
    )


class KnownItems(FrozenModel):
    """Largest share of events whose item is not in the item table, or without one not in the last run."""

    max_share_unknown: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Largest share of events with an item that the item table, or else the last run, does not have.",
        examples=[0.1],
    )


class Contract(FrozenModel):
    """All limits of a log, as it was read, before cleaning; what is left out is not limited."""

    columns: tuple[Role, ...] = Field(
        default=(),
        description="Roles that must have a column.",
        examples=[["user_id", "item_id"]],
        json_schema_extra={"kind": "list of roles"},
    )
    actions: tuple[str, ...] | None = Field(
        default=None,
        description="All actions that may occur, by the log's names.",
        examples=[["view", "purchase"]],
    )
    rows: RowLimits = RowLimits()
    newest_event: Newest = Newest()
    missing: MissingShares = MissingShares()
    value: ValueRange = ValueRange()
    timestamp: TimeRange = TimeRange()
    items: KnownItems = KnownItems()
