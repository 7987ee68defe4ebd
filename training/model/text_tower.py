"""Item vectors out of ids and text: what is learned of an item itself, and what its text says, through a gate.

Of an item that training saw n times the id counts n / (n + k) and the text the rest, dimension by dimension: empirical
Bayes shrinkage, with k and its sharpness learned. An item that training never saw is its text alone. So that the text
learns to stand alone, training takes the id away from a share of the items that it looks up (DropoutNet, Volkovs et
al. 2017). Text vectors are half whitened first, which spreads what language models crowd into a cone (Zhang et al.
2024, "Are ID Embeddings Necessary?"); wholly whitened, what is particular to one text would count as much as its topic.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.data.item_text import ItemText
from training.model.text_projection import TextProjection

ID_DROPOUT = 0.1
"""Share of look-ups that see an item as if it were new."""

_DIMENSIONS = 128
_FIRST_K = 10.0
"""At first an item seen so often counts half for itself and half for its text."""

_AT_ONCE = 65_536
_ZERO = 1e-6
_LEAST_VARIANCE = 1e-3
"""Directions of text vectors that vary less than this share of the widest one are noise."""


class TextTower(nn.Module):
    """Vectors of items by item index, in place of an `nn.Embedding`; only the rows asked for are computed."""

    _texts: Tensor
    _log_counts: Tensor
    _has_text: Tensor
    _mean: Tensor
    _whitening: Tensor

    def __init__(self, ids: nn.Embedding, text: ItemText, event_counts: Tensor) -> None:
        """`ids` (V + 1, D) by item index; `event_counts` (V,) of the training part.

        The text vectors are frozen, and not among the weights that are saved.
        """
        super().__init__()
        dim = ids.embedding_dim
        self.source = text.source
        text_vectors = torch.from_numpy(text.vectors)
        has_text = text_vectors.any(1)
        mean, whitening = whitened(text_vectors[has_text])
        texts = torch.where(has_text[:, None], (text_vectors - mean) @ whitening.T, 0.0)
        self.ids = ids
        self.project = nn.Linear(texts.shape[1], dim)
        nn.init.normal_(self.project.weight, std=float(ids.weight.detach().std()))
        nn.init.zeros_(self.project.bias)
        self.gate_slope = nn.Parameter(torch.ones(dim))
        self.gate_shift = nn.Parameter(torch.full((dim,), -math.log(_FIRST_K)))
        counts = functional.pad(event_counts, (1, 0)).float()
        self.register_buffer("_mean", mean, persistent=False)
        self.register_buffer("_whitening", whitening, persistent=False)
        self.register_buffer("_texts", functional.pad(texts, (0, 0, 1, 0)), persistent=False)
        self.register_buffer("_has_text", functional.pad(has_text, (1, 0)), persistent=False)
        self.register_buffer("_log_counts", counts.log(), persistent=False)

    def forward(self, item_index: Tensor) -> Tensor:
        """Vectors (..., D) of items by index, in training some of them without their ids; index 0 is padding."""
        new = self._log_counts[item_index] == -math.inf
        if self.training:
            new = new | (torch.rand(item_index.shape, device=item_index.device) < ID_DROPOUT)
        return self._fused(item_index, new)

    def rows(self, rows: Tensor | None = None) -> Tensor:
        """Vectors of item rows (item index less 1), or of all items, as `forward` gives them."""
        return self.forward(self._all() if rows is None else rows + 1)

    def table(self) -> Tensor:
        """Vectors of all items (V, D), each with its id where training saw it."""
        index = self._all()
        return self._fused(index, self._log_counts[index] == -math.inf)

    def projection(self) -> TextProjection:
        """How an item that training never saw gets its vector, from its text vector as it was given."""
        with torch.no_grad():
            weight = self.project.weight @ self._whitening
            bias = self.project.bias - weight @ self._mean
        return TextProjection(weight.cpu().numpy(), bias.cpu().numpy(), self.source)

    def _all(self) -> Tensor:
        return torch.arange(1, len(self._texts), device=self._texts.device)

    def _fused(self, index: Tensor, new: Tensor) -> Tensor:
        """`new` tells which of the items have no id to speak of; without text the id stands alone."""
        ids, texts = self.ids(index), self.project(functional.embedding(index, self._texts))
        seen = self._log_counts[index].masked_fill(new, 0.0)[..., None]
        gate = torch.sigmoid(self.gate_slope * seen + self.gate_shift).masked_fill(new[..., None], 0.0)
        return torch.lerp(texts, ids, gate.masked_fill(~self._has_text[index][..., None], 1.0))


def whitened(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (T,) and matrix (R, T) that take vectors (n, T) half the way to equal variance in R directions.

    They are of length 1 then, as a root mean square. R is at most `_DIMENSIONS`, and less where the vectors vary in
    fewer directions.
    """
    count = max(len(vectors), 1)
    mean = vectors.sum(0, dtype=torch.float64) / count
    covariance = vectors.new_zeros(vectors.shape[1], vectors.shape[1], dtype=torch.float64)
    for start in range(0, len(vectors), _AT_ONCE):
        part = vectors[start : start + _AT_ONCE] - mean
        covariance += part.T @ part / count
    variances, directions = torch.linalg.eigh(covariance)
    kept = (variances >= _LEAST_VARIANCE * variances[-1]).nonzero().squeeze(1)[-_DIMENSIONS:]
    halfway = variances[kept].clamp(min=_ZERO).sqrt()
    matrix = directions[:, kept].T / halfway[:, None].sqrt() / halfway.sum().sqrt()
    return mean.float(), matrix.float()
