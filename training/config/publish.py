"""Settings of publishing: `[publish]`."""

from pydantic import Field

from server.core.frozen_model import FrozenModel


class PublishSettings(FrozenModel):
    """Limits for publishing a release; it is compared with the release that is active at that time."""

    max_loss: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="NDCG@10 may be lower than the active release's by at most this share.",
        json_schema_extra={
            "touch": "Figures of a small log jump from night to night: up. A nightly job that nobody watches: down."
        },
    )
    min_known_popularity: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Least share of the active release's item popularity that the new release still knows.",
        json_schema_extra={"touch": "The catalogue changes quickly by nature, as with news: down."},
    )
    max_moved_share: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Maximum share of users who change their segment.",
        json_schema_extra={"touch": "Campaigns rest on steady segments: down."},
    )
    max_retired_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Maximum share of users whose segment is retired.",
        json_schema_extra={"touch": "As `max_moved_share`."},
    )
    compared_users: int = Field(
        default=20_000,
        ge=1,
        description="Maximum number of users to compare.",
        json_schema_extra={"touch": "Checks take too long: down."},
    )
    max_model_bytes: int = Field(
        default=2_000_000_000,
        ge=1,
        description="Maximum size of the encoder's file.",
        json_schema_extra={"touch": "Serving machines have little memory: down."},
    )
    check_seconds: float = Field(
        default=120.0,
        gt=0,
        description="Maximum time of the encoder's checks.",
        json_schema_extra={"touch": 'Publishing ends with "took too long" on a slow machine.'},
    )
