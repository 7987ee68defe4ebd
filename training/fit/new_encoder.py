"""The encoder that a training begins with."""

from pathlib import Path

from torch import Tensor

from server.core.preprocessing import Preprocessing
from training.config import TrainSettings
from training.data.item_text import read_item_text
from training.fit.defaults import ChosenSettings
from training.model.category_tower import read_item_categories
from training.model.encoder import Encoder, EncoderShape

LAZY_ITEMS = 50_000
"""On a CPU, larger catalogues have sparse gradients: the cost of a step must not grow with the catalogue."""


def new_encoder(
    prepared: Path,
    settings: TrainSettings,
    chosen: ChosenSettings,
    preprocessing: Preprocessing,
    event_counts: Tensor,
) -> Encoder:
    """An encoder with the texts or categories of the items in `prepared`, whose first guess is popularity.

    `event_counts` (V,) says how often training sees each item. Weights are drawn from torch's random numbers.
    """
    shape = EncoderShape(
        item_count=len(event_counts),
        action_count=len(preprocessing.actions),
        max_length=preprocessing.max_length,
        embedding_dim=settings.embedding_dim,
        layers=settings.layers,
        heads=settings.heads,
    )
    encoder = Encoder(shape, chosen.dropout)
    text = read_item_text(prepared)
    categories = read_item_categories(prepared) if chosen.categories and not text else None
    if text:
        encoder.use_text(text, event_counts)
    if categories:
        encoder.use_categories(categories)
    encoder.start_from_popularity(event_counts)
    return encoder


def copy_of(start: Encoder, dropout: float) -> Encoder:
    """An encoder with the weights of `start`, to train on."""
    encoder = Encoder(start.shape, dropout)
    encoder.load_state_dict(start.state_dict())
    return encoder


def adapt_to_device(encoder: Encoder, device: str) -> None:
    """Choose how `device` computes steps: sparse gradients of large catalogues on a CPU, compiled blocks on a GPU."""
    if device == "cpu" and encoder.shape.item_count >= LAZY_ITEMS:
        encoder.use_sparse_gradients()
    if device == "cuda":
        encoder.compile_blocks()
