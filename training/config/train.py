"""Settings of the encoder and its training: `[train]`."""

from typing import Self

from pydantic import Field, model_validator

from server.core.frozen_model import FrozenModel


class TrainSettings(FrozenModel):
    """The encoder and how it is trained."""

    max_length: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Newest events that the Transformer reads (segments read at least 1,000); 0: chosen from the log.",
    )
    embedding_dim: int = Field(default=64, ge=2, le=4096, description="Size of item and user embeddings.")
    layers: int = Field(default=2, ge=1, le=64, description="Transformer blocks.")
    heads: int = Field(default=2, ge=1, le=64, description="Attention heads; must divide `embedding_dim`.")
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="Dropout rate of embeddings and residuals; left out: chosen from the log."
    )
    feature_mse: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of an extra loss that predicts the embedding of the user's next event.",
    )
    learning_rate: float = Field(default=3e-3, gt=0, description="Peak learning rate of AdamW.")
    batch_size: int | None = Field(
        default=None, ge=1, description="Windows per step; left out: chosen from their lengths."
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="Number of parts that a step is computed in: more parts need less memory and give the same result.",
    )
    epochs: int = Field(default=30, ge=1, description="Maximum number of passes over the users.")
    max_minutes: float | None = Field(default=None, gt=0, description="Maximum training time; left out: no limit.")
    patience: int = Field(default=5, ge=1, description="Validations without improvement before training stops.")
    negatives: int | None = Field(
        default=None,
        ge=0,
        description="Sampled negatives per batch; 0: all items; left out: chosen from the catalogue.",
    )
    categories: bool | None = Field(
        default=None,
        description="Items without [text] share vectors of their categories; left out: chosen from the log.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seeds every random choice of the run.")
    device: str = Field(
        default="auto", description="auto, cpu or cuda; a named device that is not available is an error."
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.embedding_dim % self.heads:
            raise ValueError(f"embedding_dim {self.embedding_dim} is not a multiple of heads {self.heads}")
        return self
