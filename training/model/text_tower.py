"""Item vectors from ids and texts: a learned gate mixes the vector of the id and the projected text vector.

For an item with n training events, the weight of the id is n / (n + k) and the rest is the weight of the text, per
dimension. This is empirical Bayes shrinkage, with learned k and sharpness. An item without training events only uses
its text. Training drops the id of a share of the looked-up items, so that the text alone learns to describe an item
(DropoutNet, Volkovs et al. 2017). Text vectors are half whitened first, which spreads the narrow cone of language
model vectors (Zhang et al. 2024, "Are ID Embeddings Necessary?"). Full whitening would weight details of one text as
much as its topic.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.data.item_text import ItemText
from training.model.text_projection import TextProjection

ID_DROPOUT = 0.1
"""Share of look-ups in training that treat the item as new, without its id."""

_DIMENSIONS = 128
_FIRST_K = 10.0
"""Initial k: with this number of events, id and text have equal weight."""

_AT_ONCE = 65_536
_ZERO = 1e-6
_LEAST_VARIANCE = 1e-3
"""Directions with a variance below this share of the largest variance are noise and left out."""


class TextTower(nn.Module):
    """Item vectors by item index, with the interface of `nn.Embedding`; computes only the requested rows."""

    _texts: Tensor
    _log_counts: Tensor
    _has_text: Tensor
    _mean: Tensor
    _whitening: Tensor

    def __init__(self, ids: nn.Embedding, text: ItemText, event_counts: Tensor) -> None:
        """`ids` (V + 1, D) by item index; `event_counts` (V,) of the training part.

        The text vectors are frozen, and not part of the saved weights.
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
        """Vectors (..., D) of items by index; index 0 is padding. In training, some items are computed without ids."""
        new = self._log_counts[item_index] == -math.inf
        if self.training:
            new = new | (torch.rand(item_index.shape, device=item_index.device) < ID_DROPOUT)
        return self._fused(item_index, new)

    def rows(self, rows: Tensor | None = None) -> Tensor:
        """Vectors of item rows (item index less 1), or of all items, as `forward` gives them."""
        return self.forward(self._all() if rows is None else rows + 1)

    def table(self) -> Tensor:
        """Vectors of all items (V, D), with the ids of all items that have training events."""
        index = self._all()
        return self._fused(index, self._log_counts[index] == -math.inf)

    def projection(self) -> TextProjection:
        """The projection for items without training events, from text vectors before whitening."""
        with torch.no_grad():
            weight = self.project.weight @ self._whitening
            bias = self.project.bias - weight @ self._mean
        return TextProjection(weight.cpu().numpy(), bias.cpu().numpy(), self.source)

    def _all(self) -> Tensor:
        return torch.arange(1, len(self._texts), device=self._texts.device)

    def _fused(self, index: Tensor, new: Tensor) -> Tensor:
        """Mix ids and texts; items in the mask `new` do not use their id, and items without text use only their id."""
        ids, texts = self.ids(index), self.project(functional.embedding(index, self._texts))
        seen = self._log_counts[index].masked_fill(new, 0.0)[..., None]
        gate = torch.sigmoid(self.gate_slope * seen + self.gate_shift).masked_fill(new[..., None], 0.0)
        return torch.lerp(texts, ids, gate.masked_fill(~self._has_text[index][..., None], 1.0))


def whitened(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (T,) and matrix (R, T) that half whiten vectors (n, T): each direction is divided by the root of its spread.

    The results have a root mean square length of 1. R is at most `_DIMENSIONS`, or the number of directions in which
    the vectors vary.
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
