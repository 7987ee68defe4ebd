"""Settings of the segments: `[segment]`."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from server.core.frozen_model import FrozenModel


class Naming(FrozenModel):
    """Segment names from a language model, which receives only the figures of the profiles."""

    url: str | None = Field(
        default=None,
        description="An OpenAI-compatible endpoint, such as http://localhost:8000/v1; left out: no names.",
        examples=["http://localhost:8000/v1"],
        json_schema_extra={"touch": "Names in words are wanted, and a language model is at hand."},
    )
    model: str = Field(
        default="", description="Name of the model; goes with `url`.", json_schema_extra={"touch": "Goes with `url`."}
    )
    api_key_variable: str = Field(
        default="",
        description="Environment variable with the API key, if the endpoint needs a key.",
        json_schema_extra={"touch": "The endpoint asks for a key."},
    )
    timeout_seconds: float = Field(
        default=30.0, gt=0, description="Time limit of each answer.", json_schema_extra={"touch": "The model is slow."}
    )

    @model_validator(mode="after")
    def _model_goes_with_url(self) -> Self:
        if (self.url is None) != (not self.model):
            raise ValueError("`url` and `model` go together")
        return self


class SegmentSettings(FrozenModel):
    """K-means over user embeddings, and the published figures of its segments."""

    k: int | Literal["auto"] = Field(
        default=8,
        description="Number of segments; auto: chosen from `k_range`.",
        json_schema_extra={
            "touch": "People can work with more or fewer segments; `segrec-train sweep` compares numbers.",
            "range": "2 to 65,536, or auto",
            "kind": 'whole number or `"auto"`',
        },
    )
    k_range: tuple[int, int] = Field(
        default=(2, 32),
        description="Smallest and largest number of segments that `auto` may choose.",
        json_schema_extra={
            "touch": "`auto` or `sweep` should look further or less far.",
            "range": "2 to 65,536, the smaller first",
        },
    )
    backend: Literal["auto", "sklearn", "dask", "cuml", "cuml_dask"] = Field(
        default="auto",
        description="auto: cuml if the GPU driver finds a GPU, else sklearn.",
        json_schema_extra={"touch": "Tens of millions of users: dask on many cores, cuml on a GPU."},
    )
    start: Literal["k-means++", "previous"] = Field(
        default="k-means++",
        description="First centroids; previous: from the repository's newest release.",
        json_schema_extra={"touch": "Segments should move as little as possible from release to release."},
    )
    restarts: int = Field(
        default=10,
        ge=1,
        le=1000,
        description="Number of K-means runs; the best run wins.",
        json_schema_extra={"touch": "Seldom; fewer for speed with millions of users."},
    )
    max_iterations: int = Field(
        default=300, ge=1, description="Maximum iterations per run.", json_schema_extra={"touch": "Seldom."}
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Seeds the first centroids.",
        json_schema_extra={"touch": "To see how much segments differ by chance; `sweep` measures it."},
    )
    min_segment_size: int = Field(
        default=50,
        ge=1,
        description="Smaller segments are merged into their nearest segment, and publish no figures.",
        json_schema_extra={
            "touch": "Small groups must not be published (privacy), or k is large for the number of users."
        },
    )
    min_item_users: int = Field(
        default=5,
        ge=1,
        description="Least users of a segment behind each published item, category or action.",
        json_schema_extra={"touch": "Privacy asks for more; tiny logs show too little: less."},
    )
    min_confidence: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Users with a lower confidence have no confident segment.",
        json_schema_extra={"touch": "Callers should act on sure segments only: up."},
    )
    min_history: int = Field(
        default=3,
        ge=0,
        description="Histories with fewer known events are marked as short.",
        json_schema_extra={"touch": "Callers should treat newcomers apart for longer."},
    )
    naming: Naming = Naming()

    @field_validator("k")
    @classmethod
    def _k_in_range(cls, k: int | str) -> int | str:
        if isinstance(k, int) and not 2 <= k <= 65536:
            raise ValueError("k must be from 2 to 65536, or auto")
        return k

    @field_validator("k_range")
    @classmethod
    def _range_rises(cls, k_range: tuple[int, int]) -> tuple[int, int]:
        if not 2 <= k_range[0] <= k_range[1] <= 65536:
            raise ValueError("k_range must be two numbers from 2 to 65536, the smaller first")
        return k_range
