"""The segment embedding, and the user embedding of a release that contains it.

The segment embedding has three parts: a forecast of the user's next events, the mean over the encoder's positions, and
a bag of the history's items. Mean and bag describe the past: their segments are stable, but predict little. The
forecast is learned from both and from the encoder's last position. If segments of the last position itself are more
stable, it replaces the forecast. All three parts together do better in linear probes and segments than any single part
(docs/EXPERIMENTS.md). The user embedding of a release is the last position, which ranks items, then the segment
embedding.

The bag reads up to `BAG_HISTORY` events, since more events improve it at little cost. The encoder's blocks read the
newest `max_length` of these events.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy import sparse
from scipy.sparse import linalg
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn
from torch.nn import functional

from server.core.features import GAP_START, Features
from server.core.preprocessing import Preprocessing
from training.data.sequences import EventLog, HeldOut, in_training
from training.model.encoder import Encoder
from training.model.forecast import Bags, agreement_of_halves, halves_of, learn_forecast
from training.model.quantized import QuantizedEncoder
from training.model.torch_inference import embed_histories

SEGMENT_EMBEDDING = "segment_embedding.safetensors"

PLACES = "segments.places"
"""End of the name of the exported graph's tensor that maps an item index to its row in the bag's table."""

BAG_HISTORY = 1_000
"""Newest events that the bag reads; equal to the default number of events that a server keeps per user."""

BAG_DIM = 96
"""Dimensions of the bag; fewer if there are fewer items or users."""

_ITEMS_MAX = 100_000
"""Items in the bag's table, the most frequent ones. Rare items do not describe segments, and a table of a million
items would need 1 GB."""

_AHEAD = (3.0, 2.0)
"""Candidate weights of forecast and bag, relative to the mean: with larger weights, segments predict better and are
less stable (docs/EXPERIMENTS.md)."""

_LAST_AHEAD = (1.4, 1.0, 1.8)
"""Weights of last position, mean and bag, if the last position replaces the forecast."""

_USERS_MAX = 100_000
_CENTRED_USERS = 20_000


class SegmentEmbedding(nn.Module):
    """The segment embedding (B, F + D + S): forecast, mean over positions and bag of items, of lengths `weights` (3,).

    `center` (2, D) holds the averages over users of last position and mean, which are subtracted. The bag is a
    truncated singular value decomposition of counts times idf (Deerwester et al. 1990): the sum over the history of
    rows of `items` (M + 1, S). `places` (V + 1, 1) maps an item index to its row; row 0 is zeros, for padding and for
    items outside of the table. The forecast is linear in last position, mean and bag, each scaled to length 1: their
    product with `forecast` (D + D + S, F), minus `forecast_center` (F,). `history` (1,) is the number of events that
    the bag reads; 0 means as many as the encoder.
    """

    center: Tensor
    places: Tensor
    items: Tensor
    forecast: Tensor
    forecast_center: Tensor
    weights: Tensor
    history: Tensor

    def __init__(
        self,
        center: Tensor,
        places: Tensor,
        items: Tensor,
        forecast: Tensor,
        forecast_center: Tensor,
        weights: Tensor | None = None,
        history: Tensor | None = None,
    ) -> None:
        """By default, the parts have equal lengths and the bag reads `BAG_HISTORY` events."""
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("places", places)
        self.register_buffer("items", items)
        self.register_buffer("forecast", forecast)
        self.register_buffer("forecast_center", forecast_center)
        self.register_buffer("weights", torch.ones(3) if weights is None else weights)
        reads = torch.tensor([BAG_HISTORY], dtype=torch.int32)
        self.register_buffer("history", reads if history is None else history)

    @classmethod
    def fit(cls, encoder: Encoder, log: EventLog, preprocessing: Preprocessing, seed: int) -> Self:
        """Learn from the training events.

        The last position replaces the forecast if there are too few users, or if its segments are more stable.
        """
        rng = np.random.default_rng(seed)
        shape = encoder.shape
        has_events = np.flatnonzero(log.train_ends > log.features.starts)
        sample = np.sort(rng.permutation(has_events)[:_CENTRED_USERS])
        histories = HeldOut(sample, log.train_ends[sample], np.zeros(len(sample), np.int32))
        last_and_mean = embed_histories(
            _LastAndMean(encoder), log.histories(histories.rows, histories.ends, shape.max_length), shape
        )
        rows, items = item_directions(log, shape.item_count, rng.permutation(has_events)[:_USERS_MAX], seed)
        places = torch.zeros(shape.item_count + 1, 1, dtype=torch.int32)
        places[torch.from_numpy(rows) + 1, 0] = torch.arange(1, len(rows) + 1, dtype=torch.int32)
        table = torch.cat([torch.zeros(1, items.shape[1]), torch.from_numpy(items)])
        parts = last_and_mean.mean(0).reshape(2, -1), places, table
        identity = _last_alone(shape.embedding_dim, items.shape[1])
        by_last = cls(*parts, *identity, torch.tensor(_LAST_AHEAD))
        parts_encoder = _Parts(encoder, by_last).eval()

        def embed(features: Features) -> NDArray[np.float32]:
            inputs: NDArray[np.float32] = embed_histories(parts_encoder, features, parts_encoder.shape).numpy()
            return inputs

        bags = Bags(places[:, 0].numpy(), table.numpy())
        forecast = learn_forecast(log, preprocessing, embed, bags, parts_encoder.shape.max_length, seed)
        if forecast is None:
            return by_last
        by_forecast = cls(*parts, torch.from_numpy(forecast.weights), torch.from_numpy(forecast.center))
        halves = halves_of(log, preprocessing, embed, seed)
        if halves is None:
            return by_forecast
        return by_forecast._with_weights([torch.from_numpy(half) for half in halves], by_last, seed)

    def _with_weights(self, halves: Sequence[Tensor], by_last: Self, seed: int) -> Self:
        """Choose weights: the largest of `_AHEAD` with segments as stable as those of bags, else the most stable.

        `halves` are the `parts` of two halves of users' events, (H, D + D + S) each. `by_last` is the alternative with
        the last position in place of the forecast.
        """
        bag_stability = agreement_of_halves([half[:, 2 * self.center.shape[1] :].numpy() for half in halves], seed)
        stability = {}
        for weight in _AHEAD:
            self.weights[[0, 2]] = weight
            stability[weight] = self._stability(halves, seed)
            if stability[weight] >= bag_stability:
                return self
        best = max(_AHEAD, key=lambda weight: stability[weight])
        if by_last._stability(halves, seed) > stability[best]:
            return by_last
        self.weights[[0, 2]] = best
        return self

    def _stability(self, halves: Sequence[Tensor], seed: int) -> float:
        return agreement_of_halves([functional.normalize(self.combined(half)).numpy() for half in halves], seed)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the file of `write`."""
        return cls(**load_file(directory / SEGMENT_EMBEDDING))

    def write(self, directory: Path) -> None:
        """Write the file into the directory of the encoder's weights."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, directory / SEGMENT_EMBEDDING)

    def forward(self, last: Tensor, mean: Tensor, item_index: Tensor) -> Tensor:
        """The embedding, from `Encoder.last_and_mean`, (B, D) each, and item indexes (B, L), perhaps of more events."""
        return self.combined(self.parts(last, mean, item_index))

    def combined(self, parts: Tensor) -> Tensor:
        """The segment embedding (B, F + D + S) from `parts`."""
        dim = self.center.shape[1]
        ahead = functional.normalize(parts @ self.forecast - self.forecast_center)
        mean, bag = parts[:, dim : 2 * dim], parts[:, 2 * dim :]
        return torch.cat([ahead * self.weights[0], mean * self.weights[1], bag * self.weights[2]], dim=-1)

    def parts(self, last: Tensor, mean: Tensor, item_index: Tensor) -> Tensor:
        """Last position, mean and bag, each of length 1, (B, D + D + S): the inputs of the forecast."""
        rows = functional.embedding(item_index, self.places).squeeze(-1)
        parts = last - self.center[0], mean - self.center[1], functional.embedding(rows, self.items).sum(1)
        return torch.cat([functional.normalize(part) for part in parts], dim=-1)

    @property
    def dim(self) -> int:
        """Dimensions of the segment embedding."""
        return self.forecast.shape[1] + self.center.shape[1] + self.items.shape[1]


def _last_alone(dim: int, bag_dim: int) -> tuple[Tensor, Tensor]:
    """A `forecast` and `forecast_center` that return the last position, of `dim` numbers, unchanged."""
    return torch.eye(2 * dim + bag_dim, dim), torch.zeros(dim)


class _LastAndMean(nn.Module):
    """Last position and mean, concatenated, (B, 2 D)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._encoder = encoder

    def forward(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        return torch.cat(self._encoder.last_and_mean(item_index, action_index, value, gap_index), dim=-1)


def item_directions(
    log: EventLog, item_count: int, users: NDArray[np.intp], seed: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Item rows in the bag's table, (M,), and the vector that an event of each adds to a bag, float32 (M, S)."""
    kept = in_training(log)
    user = log.event_users
    kept &= np.isin(user, users)
    item = log.features.item_index[kept] - 1
    shape = len(log.users), item_count
    counts = sparse.csr_matrix((np.ones(len(item), np.float32), (user[kept], item)), shape)
    user_counts = np.bincount(counts.indices, minlength=item_count)
    rows = np.sort(np.argsort(-user_counts, kind="stable")[:_ITEMS_MAX])
    rows = rows[user_counts[rows] > 0]
    idf = np.log(len(users) / user_counts[rows]).astype(np.float32)
    weighted = counts[:, rows] @ sparse.diags(idf)
    # Bags of many events have less noise, so a user's weight grows with the square root of the bag's length.
    weighted = sparse.diags(np.sqrt(linalg.norm(weighted, axis=1))) @ normalize(weighted)
    dim = min(BAG_DIM, len(rows), len(users))
    _, _, directions = randomized_svd(weighted, dim, random_state=seed)
    return rows, (directions * idf).T.astype(np.float32)


class UserEncoder(nn.Module):
    """Histories → user embeddings of a release, (B, D + F + D + S): the last position, then the segment embedding.

    A `QuantizedEncoder` computes both in its own graph, and `segments` is None. `shape` is the encoder's, except
    `max_length`, the number of events that bag and encoder read; the encoder gets the newest events.
    """

    def __init__(self, encoder: Encoder, segments: SegmentEmbedding | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.segments = segments
        history = 0 if segments is None else int(segments.history)
        self.shape = replace(encoder.shape, max_length=max(encoder.shape.max_length, history))

    @classmethod
    def load(cls, encoder: Encoder, trained: Path) -> Self:
        """`encoder` with the segment embedding from the directory `trained`."""
        segments = None if isinstance(encoder, QuantizedEncoder) else SegmentEmbedding.read(trained)
        return cls(encoder, segments).eval()

    def forward(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        """User embeddings (B, D + F + D + S); inputs as for the encoder, each (B, L), L ≤ `shape.max_length`."""
        if isinstance(self.encoder, QuantizedEncoder):
            return self.encoder.whole(item_index, action_index, value, gap_index)
        assert self.segments
        last, mean = self.encoder.last_and_mean(*self.newest(item_index, action_index, value, gap_index))
        return torch.cat([last, self.segments(last, mean, item_index)], dim=-1)

    def newest(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> tuple[Tensor, ...]:
        """The newest events that the encoder reads; the gap before the first of them becomes unknown."""
        columns = (item_index, action_index, value, gap_index)
        *others, gap = (column[:, -self.encoder.shape.max_length :] for column in columns)
        return *others, torch.cat([gap[:, :1].clamp(max=GAP_START), gap[:, 1:]], dim=1)

    @property
    def segment_dim(self) -> int:
        """Dimensions of the segment embedding."""
        return self.shape.embedding_dim if self.segments is None else self.segments.dim

    def item_embeddings(self) -> Tensor:
        """Row r belongs to item index r + 1, (V, D)."""
        return self.encoder.item_embeddings()


class _Parts(UserEncoder):
    """Histories → the inputs of the forecast, `SegmentEmbedding.parts`."""

    def forward(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        assert self.segments
        last, mean = self.encoder.last_and_mean(*self.newest(item_index, action_index, value, gap_index))
        return self.segments.parts(last, mean, item_index)
