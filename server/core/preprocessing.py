"""What turns raw events into encoder inputs; learned in training, carried in the release, used by both sides."""

from typing import Literal

from pydantic import Field

from server.core.frozen_model import FrozenModel

ID_PATTERN = r"^[^\x00-\x1f\x7f]+$"


class Action(FrozenModel):
    """A kind of event. Its place in `Preprocessing.actions`, counted from 1, is its action index."""

    name: str = Field(min_length=1, max_length=256, pattern=ID_PATTERN)
    weight: float = Field(description="What one such event says for an item; negative for returns and dislikes.")


class ValueNormaliser(FrozenModel):
    """Maps a raw value x to (x' - center) / scale, with x' = sign(x) log(1 + |x|) for "log" and x otherwise.

    A missing value becomes 0. Learned on the training part of the log only.
    """

    method: Literal["none", "z_score", "min_max", "robust", "log"] = "none"
    center: float = Field(default=0.0, allow_inf_nan=False)
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class Preprocessing(FrozenModel):
    """The whole of it: `preprocessing.json` of a run and of a release."""

    max_length: int = Field(ge=1, le=4096, description="How many of a user's newest events the encoder reads.")
    actions: tuple[Action, ...] = Field(min_length=1)
    value: ValueNormaliser = ValueNormaliser()
    has_clock: bool = Field(description="Whether timestamps are times; otherwise they only give the order.")
    exclude_seen: bool = Field(description="Whether items of the history are left out of recommendations by default.")
