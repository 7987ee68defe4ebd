"""Settings that are chosen from the log and the machine where the configuration leaves them out."""

from dataclasses import dataclass

import torch

from training.config import TrainSettings
from training.data.sequences import EventLog
from training.errors import ConfigError
from training.model.loss import choose_negatives

USUAL_DROPOUT, FEW_EVENTS_DROPOUT = 0.2, 0.5
FEW_EVENTS = 10
"""Mean events a user below which a log is short and sparse."""

FEW_EVENTS_AN_ITEM = 15
"""Mean events an item below which a catalogue is so sparse that items need their categories beside their ids."""


@dataclass(frozen=True, slots=True)
class ChosenSettings:
    """Settings without gaps. `negatives` is 0 for the full softmax; `categories` asks for vectors of categories."""

    dropout: float
    negatives: int
    categories: bool

    @classmethod
    def choose(cls, settings: TrainSettings, log: EventLog, item_count: int) -> "ChosenSettings":
        """The values of `settings`; those left out are chosen from the log."""
        return cls(
            dropout=choose_dropout(log) if settings.dropout is None else settings.dropout,
            negatives=choose_negatives(item_count) if settings.negatives is None else settings.negatives,
            categories=choose_categories(log, item_count) if settings.categories is None else settings.categories,
        )


def choose_dropout(log: EventLog) -> float:
    """The dropout that suits a log: more where users have few events to learn from."""
    return FEW_EVENTS_DROPOUT if _training_events(log) < FEW_EVENTS * len(log.users) else USUAL_DROPOUT


def choose_categories(log: EventLog, item_count: int) -> bool:
    """Whether items share vectors of their categories: where items have few events of their own."""
    return _training_events(log) < FEW_EVENTS_AN_ITEM * item_count


def choose_device(name: str) -> str:
    """`cpu` or `cuda`; `auto` takes CUDA where torch can use it. Raises ConfigError for a device that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"train.device is `{name}`; it can be auto, cpu or cuda.")
    usable = torch.cuda.is_available()
    if name == "cuda" and not usable:
        raise ConfigError("train.device is cuda, but torch finds no usable NVIDIA GPU; set it to auto or cpu.")
    return "cuda" if usable and name != "cpu" else "cpu"


def _training_events(log: EventLog) -> int:
    return int((log.train_ends - log.features.starts).sum())
