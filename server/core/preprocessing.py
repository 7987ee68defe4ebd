"""The parameters that turn raw events into encoder inputs: fitted in training, part of a release."""

from typing import Literal

from pydantic import Field

from server.core.frozen_model import FrozenModel

VALUE_MAX = 1e150
"""Values of a larger size count as missing: tools write such numbers where there is none, and sums overflow."""
NORMALISED_MAX = 1e9
"""Normalised values are clipped to this size, as the encoder computes in float32."""

ID_PATTERN = r"^[^\x00-\x1f\x7f]+$"


class Action(FrozenModel):
    """A kind of event. Its position in `Preprocessing.actions`, from 1, is its action index."""

    name: str = Field(min_length=1, max_length=256, pattern=ID_PATTERN)
    weight: float = Field(description="Preference for the item that an event shows; negative for returns and dislikes.")
    raw_names: tuple[str, ...] = Field(default=(), description="Its other names in the log, which mean the same.")


class ValueCleaning(FrozenModel, allow_inf_nan=False):
    """What `[clean]` does to values before `ValueNormaliser`: first to missing values, then to those out of bounds."""

    missing: Literal["keep", "drop", "fill", "interpolate"] = Field(
        default="keep", description="drop: leave the event out; interpolate: between the user's neighbouring events."
    )
    fill: float = Field(default=0.0, description="The value for `fill`.")
    bounds: tuple[float, float] | None = Field(default=None, description="Lowest and highest value, if limited.")
    drop_outside: bool = Field(default=False, description="Leave events out of bounds out; else clip their values.")


class ValueNormaliser(FrozenModel):
    """Maps a raw value x to (x' - center) / scale, with x' = sign(x) log(1 + |x|) for "log" and x otherwise.

    A value that is still missing becomes 0. Fitted on the training part of the log only.
    """

    method: Literal["none", "z_score", "min_max", "robust", "log"] = "none"
    center: float = Field(default=0.0, allow_inf_nan=False)
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class Visits(FrozenModel):
    """What a visit is in a log: see `server.core.visits`."""

    gap_seconds: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Largest gap inside a visit; 0: equal time stamps only."
    )
    ordered: bool = Field(default=False, description="Whether the order of tied events means something.")


class Preprocessing(FrozenModel):
    """`preprocessing.json` of a run and of a release."""

    max_length: int = Field(ge=1, le=4096, description="Number of newest events of a user that the encoder reads.")
    actions: tuple[Action, ...] = Field(min_length=1)
    value_cleaning: ValueCleaning = ValueCleaning()
    value: ValueNormaliser = ValueNormaliser()
    has_clock: bool = Field(description="Whether timestamps are times; if not, they only give the order.")
    exclude_seen: bool = Field(description="Default: leave items of the history out of recommendations.")
    visits: Visits = Visits()
