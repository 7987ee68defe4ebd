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
        json_schema_extra={
            "touch": "Users have far longer histories than was chosen: accuracy may grow, training slows."
        },
    )
    embedding_dim: int = Field(
        default=64,
        ge=2,
        le=4096,
        description="Size of item and user embeddings.",
        json_schema_extra={
            "touch": "Up for millions of events and items; down for speed and memory. `tune` searches it."
        },
    )
    layers: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Transformer blocks.",
        json_schema_extra={"touch": "Up for long, orderly histories; 1 for speed. `tune` searches it."},
    )
    heads: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Attention heads; must divide `embedding_dim`.",
        json_schema_extra={"touch": "Seldom; 1, 2 or 4 differ little."},
    )
    dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Dropout rate of embeddings and residuals; left out: chosen from the log.",
        examples=[0.2],
        json_schema_extra={
            "touch": "The curves show overfitting (validation falls while the loss falls): up. `tune` searches it."
        },
    )
    feature_mse: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of an extra loss that predicts the embedding of the user's next event.",
        json_schema_extra={"touch": "Seldom: no gain was proven (docs/EXPERIMENTS.md)."},
    )
    learning_rate: float = Field(
        default=3e-3,
        gt=0,
        description="Peak learning rate of AdamW.",
        json_schema_extra={"touch": "The loss jumps or is NaN: down. `tune` searches it."},
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Windows per step; left out: chosen from their lengths.",
        examples=[256],
        json_schema_extra={"touch": "Memory is short: down, or use `accumulate`."},
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="Number of parts that a step is computed in: more parts need less memory and give the same result.",
        json_schema_extra={"touch": "The GPU runs out of memory."},
    )
    epochs: int = Field(
        default=30,
        ge=1,
        description="Maximum number of passes over the users.",
        json_schema_extra={"touch": "The report says that training ended while validation still rose."},
    )
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        description="Maximum training time; left out: no limit.",
        examples=[30.0],
        json_schema_extra={
            "touch": "A night has only so many minutes. A limit of time makes runs differ from machine to machine."
        },
    )
    patience: int = Field(
        default=5,
        ge=1,
        description="Validations without improvement before training stops.",
        json_schema_extra={"touch": "Validation is noisy (few users): up."},
    )
    negatives: int | None = Field(
        default=None,
        ge=0,
        description="Sampled negatives per batch; 0: all items; left out: chosen from the catalogue.",
        examples=[1024],
        json_schema_extra={
            "touch": "0 (exact) where the catalogue is small or a GPU is large; more for more accuracy."
        },
    )
    categories: bool | None = Field(
        default=None,
        description="Items without [text] share vectors of their categories; left out: chosen from the log.",
        examples=[True],
        json_schema_extra={"touch": "You know that categories carry meaning, or none."},
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Seeds every random choice of the run.",
        json_schema_extra={"touch": "To see how much figures differ by chance."},
    )
    device: str = Field(
        default="auto",
        description="auto, cpu or cuda; a named device that is not available is an error.",
        json_schema_extra={
            "touch": "To be sure that a GPU is used: cuda fails where there is none.",
            "range": "`auto`, `cpu`, `cuda`",
        },
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.embedding_dim % self.heads:
            raise ValueError(f"embedding_dim {self.embedding_dim} is not a multiple of heads {self.heads}")
        return self
