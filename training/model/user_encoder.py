"""What segments are made of: a forecast of what the user does next, beside what the user did.

What was done is the mean over the encoder's positions and a bag of the history's items; they hold together and
foretell little. The forecast is learned from them and the encoder's last position, which stands for it where it
holds together better. Linear probes and segments of all three, side by side, are better than of any one
(`EXPERIMENTS.md`). The user embedding of a release is the last position, which ranks items, followed by this.

A bag is told better by more events, and costs little: it reads up to `BAG_HISTORY` of them, the encoder's blocks the
newest `max_length` of these.
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
from training.model.torch_inference import embedded

SEGMENT_EMBEDDING = "segment_embedding.safetensors"

PLACES = "segments.places"
"""Of the exported graph's tensor that says which row of the bag's table an item has: how its name ends."""

BAG_HISTORY = 1_000
"""Newest events that the bag counts: as many as a server keeps of a user by default."""

BAG_DIM = 96
"""Directions of the bag, fewer where items or users are."""

_ITEMS_MAX = 100_000
"""Rarer items have no place in the bag: they say nothing of a segment, and a table of a million would weigh 1 GB."""

_AHEAD = (3.0, 2.0)
"""Lengths of forecast and bag beside the mean, to choose from: the longer, the better segments foretell, and the less
they hold together (`EXPERIMENTS.md`)."""

_LAST_AHEAD = (1.4, 1.0, 1.8)
"""Lengths of last position, mean and bag, where it holds together better than the forecast."""

_USERS_MAX = 100_000
_CENTRED_USERS = 20_000


class SegmentEmbedding(nn.Module):
    """A forecast, the mean over positions and a bag of items, (B, F + D + S), of the lengths `weights` (3,).

    Last position and mean are taken from what they are on average over users, `center` (2, D). The bag is what a
    singular value decomposition makes of counts times idf (Deerwester et al. 1990): the sum of its items' rows of
    `items` (M + 1, S), which `places` (V + 1, 1) names by item index; row 0 is of zeros, for padding and for items
    that were not learned. The forecast is linear in last position, mean and bag, each of length 1: their product with
    `forecast` (D + D + S, F), less `forecast_center` (F,). `history` (1,) says how many events the bag reads, 0 for as
    many as the encoder.
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
        """Parts of equal length and a bag of `BAG_HISTORY` events, unless said otherwise."""
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
        """Learn from the events that training sees.

        The last position stands for a forecast where too few users tell one, or where it holds together better.
        """
        rng = np.random.default_rng(seed)
        shape = encoder.shape
        has_events = np.flatnonzero(log.train_ends > log.features.starts)
        asked = np.sort(rng.permutation(has_events)[:_CENTRED_USERS])
        past = HeldOut(asked, log.train_ends[asked], np.zeros(len(asked), np.int32))
        both = embedded(_Both(encoder), log.histories(past.rows, past.ends, shape.max_length), shape)
        rows, items = item_directions(log, shape.item_count, rng.permutation(has_events)[:_USERS_MAX], seed)
        places = torch.zeros(shape.item_count + 1, 1, dtype=torch.int32)
        places[torch.from_numpy(rows) + 1, 0] = torch.arange(1, len(rows) + 1, dtype=torch.int32)
        table = torch.cat([torch.zeros(1, items.shape[1]), torch.from_numpy(items)])
        parts = both.mean(0).reshape(2, -1), places, table
        alone = _last_alone(shape.embedding_dim, items.shape[1])
        by_last = cls(*parts, *alone, torch.tensor(_LAST_AHEAD))
        whole = _Parts(encoder, by_last).eval()

        def embed(features: Features) -> NDArray[np.float32]:
            known: NDArray[np.float32] = embedded(whole, features, whole.shape).numpy()
            return known

        bags = Bags(places[:, 0].numpy(), table.numpy())
        found = learn_forecast(log, preprocessing, embed, bags, whole.shape.max_length, seed)
        if found is None:
            return by_last
        made = cls(*parts, torch.from_numpy(found.weights), torch.from_numpy(found.center))
        halves = halves_of(log, preprocessing, embed, seed)
        return made._weighed([torch.from_numpy(half) for half in halves], by_last, seed) if halves else made

    def _weighed(self, halves: Sequence[Tensor], by_last: Self, seed: int) -> Self:
        """As far ahead as segments hold together as well as those of counts; else what holds together best.

        `halves` are `parts` of two halves of users' events, (H, D + D + S). `by_last` has the last position instead.
        """
        by_counts = agreement_of_halves([half[:, 2 * self.center.shape[1] :].numpy() for half in halves], seed)
        found = {}
        for ahead in _AHEAD:
            self.weights[[0, 2]] = ahead
            found[ahead] = self._agreement(halves, seed)
            if found[ahead] >= by_counts:
                return self
        steadiest = max(_AHEAD, key=lambda ahead: found[ahead])
        if by_last._agreement(halves, seed) > found[steadiest]:
            return by_last
        self.weights[[0, 2]] = steadiest
        return self

    def _agreement(self, halves: Sequence[Tensor], seed: int) -> float:
        return agreement_of_halves([functional.normalize(self.joined(half)).numpy() for half in halves], seed)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """What `write` wrote."""
        return cls(**load_file(directory / SEGMENT_EMBEDDING))

    def write(self, directory: Path) -> None:
        """Write it beside the encoder's weights."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, directory / SEGMENT_EMBEDDING)

    def forward(self, last: Tensor, mean: Tensor, item_index: Tensor) -> Tensor:
        """Of `Encoder.last_and_mean` (B, D) each, and the items of the histories, (B, L), which may go further back."""
        return self.joined(self.parts(last, mean, item_index))

    def joined(self, parts: Tensor) -> Tensor:
        """What segments are made of, (B, F + D + S), from `parts`."""
        dim = self.center.shape[1]
        ahead = functional.normalize(parts @ self.forecast - self.forecast_center)
        mean, bag = parts[:, dim : 2 * dim], parts[:, 2 * dim :]
        return torch.cat([ahead * self.weights[0], mean * self.weights[1], bag * self.weights[2]], dim=-1)

    def parts(self, last: Tensor, mean: Tensor, item_index: Tensor) -> Tensor:
        """Last position, mean and bag side by side, each of length 1, (B, D + D + S): what is known for a forecast."""
        rows = functional.embedding(item_index, self.places).squeeze(-1)
        parts = last - self.center[0], mean - self.center[1], functional.embedding(rows, self.items).sum(1)
        return torch.cat([functional.normalize(part) for part in parts], dim=-1)

    @property
    def dim(self) -> int:
        """How many numbers segments are made of."""
        return self.forecast.shape[1] + self.center.shape[1] + self.items.shape[1]


def _last_alone(dim: int, bag_dim: int) -> tuple[Tensor, Tensor]:
    """`forecast` and `forecast_center` that take the last position, of `dim` numbers, as it is."""
    return torch.eye(2 * dim + bag_dim, dim), torch.zeros(dim)


class _Both(nn.Module):
    """Last position and mean side by side, (B, 2 D)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._encoder = encoder

    def forward(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        return torch.cat(self._encoder.last_and_mean(item_index, action_index, value, gap_index), dim=-1)


def item_directions(
    log: EventLog, item_count: int, users: NDArray[np.intp], seed: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The rows of the items that were learned, (M,), and what an event of each adds to a bag, float32 (M, S)."""
    kept = in_training(log)
    user = log.event_users
    kept &= np.isin(user, users)
    item = log.features.item_index[kept] - 1
    shape = len(log.users), item_count
    counts = sparse.csr_matrix((np.ones(len(item), np.float32), (user[kept], item)), shape)
    had_by = np.bincount(counts.indices, minlength=item_count)
    rows = np.sort(np.argsort(-had_by, kind="stable")[:_ITEMS_MAX])
    rows = rows[had_by[rows] > 0]
    idf = np.log(len(users) / had_by[rows]).astype(np.float32)
    weighted = counts[:, rows] @ sparse.diags(idf)
    # Bags of many events have less noise: users weigh more the more they have, and less so than in proportion.
    weighted = sparse.diags(np.sqrt(linalg.norm(weighted, axis=1))) @ normalize(weighted)
    dim = min(BAG_DIM, len(rows), len(users))
    _, _, directions = randomized_svd(weighted, dim, random_state=seed)
    return rows, (directions * idf).T.astype(np.float32)


class UserEncoder(nn.Module):
    """Histories → whole user embeddings (B, D + F + D + S), as a release has them: the last position, then the rest.

    A `QuantizedEncoder` computes all of it in its own graph and has no `segments`. `shape` is the encoder's, but for
    `max_length`: how many events the whole reads, of which `encoder` gets the newest that it can read.
    """

    def __init__(self, encoder: Encoder, segments: SegmentEmbedding | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.segments = segments
        history = 0 if segments is None else int(segments.history)
        self.shape = replace(encoder.shape, max_length=max(encoder.shape.max_length, history))

    @classmethod
    def load(cls, encoder: Encoder, trained: Path) -> Self:
        """`encoder` with what stands beside its weights in `trained`."""
        segments = None if isinstance(encoder, QuantizedEncoder) else SegmentEmbedding.read(trained)
        return cls(encoder, segments).eval()

    def forward(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        """Whole user embeddings; inputs as of the encoder, each (B, L), L ≤ `shape.max_length`."""
        if isinstance(self.encoder, QuantizedEncoder):
            return self.encoder.whole(item_index, action_index, value, gap_index)
        assert self.segments
        last, mean = self.encoder.last_and_mean(*self.newest(item_index, action_index, value, gap_index))
        return torch.cat([last, self.segments(last, mean, item_index)], dim=-1)

    def newest(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> tuple[Tensor, ...]:
        """The newest events, as many as the encoder reads; the gap before the first of them is unknown to it."""
        columns = (item_index, action_index, value, gap_index)
        *others, gap = (column[:, -self.encoder.shape.max_length :] for column in columns)
        return *others, torch.cat([gap[:, :1].clamp(max=GAP_START), gap[:, 1:]], dim=1)

    @property
    def segment_dim(self) -> int:
        """How many numbers segments are made of."""
        return self.shape.embedding_dim if self.segments is None else self.segments.dim

    def item_embeddings(self) -> Tensor:
        """Row r belongs to item index r + 1, (V, D)."""
        return self.encoder.item_embeddings()


class _Parts(UserEncoder):
    """Histories → what forecasts are made of, `SegmentEmbedding.parts`."""

    def forward(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        assert self.segments
        last, mean = self.encoder.last_and_mean(*self.newest(item_index, action_index, value, gap_index))
        return self.segments.parts(last, mean, item_index)
