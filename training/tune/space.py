"""What a search may try: a range or a list of values for each of some keys of `[train]`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, ValidationError, model_validator

from server.core.frozen_model import FrozenModel
from training.config import TrainSettings, load_settings
from training.errors import ConfigError

if TYPE_CHECKING:
    import optuna

Value = bool | int | float
_NOT_SEARCHED = ("seed", "device", "epochs", "max_minutes", "patience", "accumulate")
"""Keys that change how long or where a training runs, and not what is best."""


class Range(FrozenModel):
    """The numbers from `low` to `high`, whole ones if both are. `log`: each order of size is tried as often."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        if self.log and self.low <= 0:
            raise ValueError("a range with log must begin above 0")
        return self

    @property
    def ends(self) -> tuple[Value, ...]:
        """The two ends."""
        return self.low, self.high


def _check(key: str, value: Value) -> None:
    try:
        TrainSettings.model_validate({key: value})
    except ValidationError as error:
        if problems := [problem["msg"] for problem in error.errors() if problem["loc"]]:
            raise ValueError(f"`{key}` cannot be {value}: {problems[0]}") from None


class Space(FrozenModel):
    """The keys of `[train]` that are searched; the others stay as the run's configuration has them."""

    train: dict[str, Range | tuple[Value, ...]] = Field(min_length=1)

    @model_validator(mode="after")
    def _keys_are_searchable(self) -> Self:
        for key, choice in self.train.items():
            if key not in TrainSettings.model_fields or key in _NOT_SEARCHED:
                known = ", ".join(name for name in TrainSettings.model_fields if name not in _NOT_SEARCHED)
                raise ValueError(f"`{key}` cannot be searched; these can: {known}")
            values = choice.ends if isinstance(choice, Range) else choice
            if not values:
                raise ValueError(f"`{key}` has no values to try")
            for value in values:
                _check(key, value)
        return self

    def draw(self, trial: "optuna.Trial") -> dict[str, Value]:
        """The values that a trial tries."""
        return {key: _drawn(trial, key, choice) for key, choice in self.train.items()}


SPACES: Mapping[str, Space] = {
    "small": Space(train={"learning_rate": Range(low=1e-3, high=1e-2, log=True), "dropout": Range(low=0.1, high=0.6)}),
    "wide": Space(
        train={
            "learning_rate": Range(low=5e-4, high=2e-2, log=True),
            "dropout": Range(low=0.0, high=0.7),
            "embedding_dim": (32, 64, 128, 256),
            "layers": (1, 2, 3, 4),
            "heads": (1, 2, 4),
        }
    ),
}
"""The spaces with a name."""


def read_space(name: str) -> Space:
    """The space of this name, or in the TOML file of this name. Raises ConfigError."""
    if name in SPACES:
        return SPACES[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"--space is one of {', '.join(SPACES)}, or a TOML file of ranges; there is no file {name}.")
    return load_settings(path, Space)


def with_values(settings: TrainSettings, values: Mapping[str, Value]) -> TrainSettings | None:
    """The settings with these values; None where they do not go together."""
    try:
        return TrainSettings.model_validate(settings.model_dump() | dict(values))
    except ValidationError:
        return None


def _drawn(trial: "optuna.Trial", key: str, choice: Range | tuple[Value, ...]) -> Any:
    if not isinstance(choice, Range):
        return trial.suggest_categorical(key, choice)
    if isinstance(choice.low, int) and isinstance(choice.high, int):
        return trial.suggest_int(key, choice.low, choice.high, log=choice.log)
    return trial.suggest_float(key, choice.low, choice.high, log=choice.log)
