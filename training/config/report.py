"""Settings of the report for people: `[report]`."""

from pydantic import Field, field_validator
from segrec.reading.times import zone_of

from server.core.frozen_model import FrozenModel


class ReportSettings(FrozenModel):
    """How the report is written; the API's figures stay in UTC and without a unit."""

    time_zone: str = Field(
        default="UTC",
        description="IANA name of the zone of hours, weekdays and weeks, such as Europe/Berlin.",
        json_schema_extra={"touch": "Readers live in one zone: without it, an evening can be told as the next day."},
    )
    value_unit: str = Field(
        default="",
        max_length=12,
        description="Unit or currency of the values of events, such as €, written behind the number.",
        json_schema_extra={"touch": "The log has values, and readers want to know of what."},
    )

    @field_validator("time_zone")
    @classmethod
    def _zone_is_known(cls, zone: str) -> str:
        zone_of(zone)
        return zone
