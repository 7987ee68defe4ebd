"""Settings of how a log and its tables are read: `[columns]`, `[items]`, `[users]`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from segrec.reading.times import check_format, zone_of
from segrec.reading.words import MISSING_WORDS, missing_words

from server.core.frozen_model import FrozenModel


def _column(raw: object) -> str | bool | int | None:
    """A column's name, its position from 1, or False for a role that is switched off."""
    if raw is None or raw is False or (isinstance(raw, str) and raw.strip()):
        return raw
    if type(raw) is int and raw >= 1:
        return raw
    raise ValueError("give the name of a column, its position from 1 where there is no header, or false for no column")


def _columns(raw: object) -> object:
    if isinstance(raw, list | tuple):
        if len(raw) != 2 or any(_column(column) in (None, False) for column in raw):
            raise ValueError("give one column, or two: that of the date and that of the time of day")
        return tuple(raw)
    return _column(raw)


Column = Annotated[str | bool | int | None, BeforeValidator(_column)]
"""A name, a position, or False."""


class Columns(FrozenModel):
    """The columns of the log by role; if a role is left out, its column is recognised by common names.

    A column is a name, or, without a header, a position from 1. `false` switches a role off.
    """

    user_id: Column = Field(
        default=None,
        description="Who did it.",
        examples=["customer"],
        json_schema_extra={"touch": "The name is not recognised, or the wrong column was.", "kind": "name or position"},
    )
    item_id: Column = Field(
        default=None,
        description="What it was done to.",
        examples=["product"],
        json_schema_extra={"touch": "As `user_id`.", "kind": "name or position"},
    )
    action: Column = Field(
        default=None,
        description="Without an action column, every event has the action `event`.",
        examples=["kind"],
        json_schema_extra={
            "touch": "As `user_id`; false where the column means something else.",
            "kind": "name, position or false",
        },
    )
    value: Column = Field(
        default=None,
        description="A price, rating, amount or quantity.",
        examples=["amount"],
        json_schema_extra={
            "touch": "As `user_id`; false where the number says nothing of interest.",
            "kind": "name, position or false",
        },
    )
    timestamp: Annotated[str | bool | int | tuple[str | int, str | int] | None, BeforeValidator(_columns)] = Field(
        default=None,
        description="Two columns are a date and a time of day. Without a time column, the order of the rows is the "
        "order of events.",
        examples=[["date", "time"]],
        json_schema_extra={
            "touch": "As `user_id`; two columns where date and time of day stand apart.",
            "kind": "name, position, false, or two columns",
        },
    )
    header: bool = Field(
        default=True,
        description="false: CSV and TSV files begin with an event; give positions.",
        json_schema_extra={"touch": "A delimited file whose first line is an event."},
    )
    timestamp_format: str | None = Field(
        default=None,
        description="How times are written, in directives of `strptime`, such as %d.%m.%Y %H:%M.",
        examples=["%d.%m.%Y %H:%M"],
        json_schema_extra={
            "touch": "`prepare` says that it cannot tell the day from the month, or cannot read the times."
        },
    )
    timezone: str | None = Field(
        default=None,
        description="IANA name of the zone of times that name none; left out: UTC.",
        examples=["Asia/Shanghai"],
        json_schema_extra={"touch": "Times are local and name no zone: hours and days in reports depend on it."},
    )
    missing_words: tuple[str, ...] | None = Field(
        default=None,
        description="Texts that mean a missing value in the log, item and user tables and vectors, in place of NULL, "
        "nan, None, N/A, - and the like.",
        examples=[["NULL", "unknown"]],
        json_schema_extra={
            "touch": 'A word of the list, such as NA, is a real id; or the log has a word of its own for "nothing".'
        },
    )
    unreadable: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="drop: rows with an unreadable time or value are left out, and counted.",
        json_schema_extra={"touch": "A few damaged rows of a large log are not worth mending."},
    )

    @property
    def words(self) -> frozenset[str]:
        """The texts that mean a missing value, as `segrec.reading.words` compares them."""
        return MISSING_WORDS if self.missing_words is None else missing_words(self.missing_words)

    @field_validator("timestamp_format")
    @classmethod
    def _format_is_known(cls, form: str | None) -> str | None:
        if form is not None:
            check_format(form)
        return form

    @field_validator("timezone")
    @classmethod
    def _zone_is_known(cls, zone: str | None) -> str | None:
        if zone is not None:
            zone_of(zone)
        return zone

    @model_validator(mode="after")
    def _columns_fit_header(self) -> Self:
        if self.user_id is False or self.item_id is False:
            raise ValueError("a log needs its user_id and its item_id")
        times = self.timestamp if isinstance(self.timestamp, tuple) else (self.timestamp,)
        chosen = [column for column in (self.user_id, self.item_id, self.action, self.value, *times) if column]
        if self.header and any(isinstance(column, int) for column in chosen):
            raise ValueError("positions need `header = false`; of a log with a header, give the names of columns")
        if not self.header and (None in (self.user_id, self.item_id) or any(isinstance(name, str) for name in chosen)):
            raise ValueError("`header = false` needs positions from 1, such as user_id = 1 and item_id = 2")
        return self


def _named_column(raw: object) -> object:
    if raw is None or raw is False or (isinstance(raw, str) and raw.strip()):
        return raw
    raise ValueError("give the name of a column, or false for no column")


def _named_columns(raw: object) -> object:
    if isinstance(raw, list | tuple) and all(isinstance(name, str) and name.strip() for name in raw):
        return tuple(raw)
    return _named_column(raw)


NamedColumn = Annotated[str | Literal[False] | None, BeforeValidator(_named_column)]
"""A name, or False."""


class ItemColumns(FrozenModel):
    """The columns of the item table by role, like `Columns`; `false` switches off all but the item_id.

    A table without a title column gets the descriptions as titles, unless `title` is false.
    """

    item_id: str | None = Field(
        default=None,
        description="Id of the item, as in the log.",
        examples=["sku"],
        json_schema_extra={"touch": "The name is not recognised."},
    )
    title: NamedColumn = Field(
        default=None,
        description="What people call the item; shown in answers and reports.",
        examples=["name"],
        json_schema_extra={"touch": "As `item_id`; false where no column is fit to be shown.", "kind": "name or false"},
    )
    category: Annotated[tuple[str, ...] | str | Literal[False] | None, BeforeValidator(_named_columns)] = Field(
        default=None,
        description="One column, or several from coarse to fine.",
        examples=[["department", "aisle"]],
        json_schema_extra={"touch": "As `item_id`; several names give a hierarchy.", "kind": "name, names or false"},
    )
    description: NamedColumn = Field(
        default=None,
        description="Text for the language model of [text].",
        examples=["summary"],
        json_schema_extra={
            "touch": "As `item_id`; only `[text]` and tables without a title read it.",
            "kind": "name or false",
        },
    )
    group: str | None = Field(
        default=None,
        description="What variants have in common, such as a model in several sizes: of one group the best item is "
        "recommended. Items without a value, and tables without this column, are grouped by their titles.",
        examples=["model"],
        json_schema_extra={"touch": "Variants have different titles, or different things have one title."},
    )
    seller: str | None = Field(
        default=None,
        description="Who sells the item, for rules that boost, ban or cap sellers.",
        examples=["brand"],
        json_schema_extra={"touch": "`segrec-train rules` names sellers."},
    )
    category_separator: str = Field(
        default="|",
        min_length=1,
        description="Splits one text into several categories.",
        json_schema_extra={"touch": "Categories hold a bar, or are separated by another sign."},
    )
    category_names: dict[str, Annotated[str, Field(min_length=1)]] | Path = Field(
        default_factory=dict,
        description="Names in words of categories that the table writes as codes: by category, or a table with the "
        "columns category and name.",
        json_schema_extra={
            "touch": "Categories are codes or short hand that nobody outside the company reads.",
            "kind": "table of texts, or path",
        },
    )


class UserColumns(FrozenModel):
    """The id column of the user table; every other column is a label."""

    user_id: str | None = Field(
        default=None,
        description="Id of the user, as in the log.",
        examples=["customer"],
        json_schema_extra={"touch": "The name is not recognised."},
    )
