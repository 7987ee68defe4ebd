"""The base of all values that are read from files: frozen, and unknown keys are refused."""

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """A validated value. Parsing raises pydantic's ValidationError for a key that the class does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid")
