"""Settings of publishing: `[publish]`."""

from pydantic import Field

from server.core.frozen_model import FrozenModel


class PublishSettings(FrozenModel):
    """Limits for publishing a release; it is compared with the release that is active at that time."""

    max_loss: float = Field(
        default=0.05, ge=0, le=1, description="NDCG@10 may be lower than the active release's by at most this share."
    )
    min_known_popularity: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Least share of the active release's item popularity that the new release still knows.",
    )
    max_moved_share: float = Field(
        default=0.8, ge=0, le=1, description="Maximum share of users who change their segment."
    )
    max_retired_share: float = Field(
        default=0.5, ge=0, le=1, description="Maximum share of users whose segment is retired."
    )
    compared_users: int = Field(default=20_000, ge=1, description="Maximum number of users to compare.")
    max_model_bytes: int = Field(default=2_000_000_000, ge=1, description="Maximum size of the encoder's file.")
    check_seconds: float = Field(default=120.0, gt=0, description="Maximum time of the encoder's checks.")
