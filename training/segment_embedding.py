"""What segments are made of: the encoder's last position, the mean over positions, and a bag of the history's items.

The last position foretells the next item best and holds together worst; means and counts do the opposite. Linear
probes and segments of all three side by side are better than of any one (`EXPERIMENTS.md`). The user embedding of a
release is the last position, which ranks items, followed by this.

A bag is told better by more events, and costs little: it reads up to `BAG_HISTORY` of them, the encoder's blocks the
newest `max_length` of these.
"""

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

from server.core.features import GAP_START
from server.core.preprocessing import Preprocessing
from training.encoder import Encoder
from training.parts import part_of, random_half
from training.precision import LoweredEncoder
from training.ranks import embedded
from training.sequences import HeldOut, Log, history_features, in_training

SEGMENT_EMBEDDING = "segment_embedding.safetensors"

PLACES = "segments.places"
"""Of the exported graph's tensor that says which row of the bag's table an item has: how its name ends."""

BAG_HISTORY = 1_000
"""Newest events that the bag counts: as many as a server keeps of a user by default."""

BAG_DIM = 96
"""Directions of the bag, fewer where items or users are."""

_LAST_WEIGHT, _BAG_WEIGHT = 1.4, 1.8
"""How long the last position, where it is as steady as the bag, and the bag are beside the mean (`EXPERIMENTS.md`)."""

_ITEMS_MAX = 100_000
"""Rarer items have no place in the bag: they say nothing of a segment, and a table of a million would weigh 1 GB."""

_USERS_MAX = 100_000
_CENTRED_USERS = 20_000

Parts = tuple[Tensor, Tensor]
"""Last positions and bags of the same users, (U, D) and (U, S), of length 1."""


class SegmentEmbedding(nn.Module):
    """Last position and mean from what they are on average over users, then the bag, (B, D + D + S).

    The mean has length 1, the last position `last_weight` (1,), the bag `bag_weight` (1,).
    The bag is what a singular value decomposition makes of counts times idf (Deerwester et al. 1990): the sum of its
    items' rows of `items` (M + 1, S), which `places` (V + 1, 1) names by item index; row 0 is of zeros, for padding
    and for items that were not learned. `center` (2, D) holds the averages; `history` (1,) says how many events it
    reads, 0 for as many as the encoder.
    """

    center: Tensor
    places: Tensor
    items: Tensor
    last_weight: Tensor
    bag_weight: Tensor
    history: Tensor

    def __init__(
        self,
        center: Tensor,
        places: Tensor,
        items: Tensor,
        last_weight: Tensor | None = None,
        bag_weight: Tensor | None = None,
        history: Tensor | None = None,
    ) -> None:
        """Without weights or `history` as such tensors were before they had them."""
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("places", places)
        self.register_buffer("items", items)
        self.register_buffer("last_weight", torch.ones(1) if last_weight is None else last_weight)
        self.register_buffer("bag_weight", torch.ones(1) if bag_weight is None else bag_weight)
        self.register_buffer("history", torch.zeros(1, dtype=torch.int32) if history is None else history)

    @classmethod
    def fit(cls, encoder: Encoder, log: Log, preprocessing: Preprocessing, seed: int) -> Self:
        """Learn from the events that training sees."""
        rng = np.random.default_rng(seed)
        shape = encoder.shape
        has_events = np.flatnonzero(log.train_ends > log.features.offsets[:-1])
        asked = np.sort(rng.permutation(has_events)[:_CENTRED_USERS])
        past = HeldOut(asked, log.train_ends[asked], np.zeros(len(asked), np.int32))
        both = embedded(_Both(encoder), history_features(log, past, shape.max_length), shape)
        rows, items = item_directions(log, shape.item_count, rng.permutation(has_events)[:_USERS_MAX], seed)
        places = torch.zeros(shape.item_count + 1, 1, dtype=torch.int32)
        places[torch.from_numpy(rows) + 1, 0] = torch.arange(1, len(rows) + 1, dtype=torch.int32)
        table = torch.cat([torch.zeros(1, items.shape[1]), torch.from_numpy(items)])
        made = cls(
            both.mean(0).reshape(2, -1),
            places,
            table,
            bag_weight=torch.full((1,), _BAG_WEIGHT),
            history=torch.full((1,), BAG_HISTORY, dtype=torch.int32),
        )
        halves = _halved(UserEncoder(encoder, made), log, asked, preprocessing, seed)
        made.last_weight.fill_(_LAST_WEIGHT * steadiness_of_last(*halves))
        return made

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
        rows = functional.embedding(item_index, self.places).squeeze(-1)
        bag = functional.embedding(rows, self.items).sum(1)
        parts = (last - self.center[0], mean - self.center[1], bag)
        last, mean, bag = (functional.normalize(part) for part in parts)
        return torch.cat([last * self.last_weight, mean, bag * self.bag_weight], dim=-1)


class _Both(nn.Module):
    """Last position and mean side by side, (B, 2 D)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._encoder = encoder

    def forward(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        return torch.cat(self._encoder.last_and_mean(item_index, action_index, value, gap_index), dim=-1)


def steadiness_of_last(one: Parts, other: Parts) -> float:
    """How steady the last position is over how steady the bag is, in [0, 1]; `steadiness` says what that means.

    `one` and `other` are made of two halves of the same users' events. What comes out less of other events of the
    user counts less.
    """
    last, bag = (steadiness(mine, again) for mine, again in zip(one, other, strict=True))
    return min(max(last / bag, 0.0), 1.0) if bag > 0 else 1.0


def steadiness(one: Tensor, other: Tensor) -> float:
    """How much liker a user's two vectors are, (U, D) of length 1 each, than two users': mean cosines' difference."""
    count = len(one)
    if count < 2:
        return 0.0
    same = (one * other).sum()
    others = (one.sum(0) @ other.sum(0) - same) / (count - 1)
    return float((same - others) / count)


def _halved(
    whole: "UserEncoder", log: Log, rows: NDArray[np.intp], preprocessing: Preprocessing, seed: int
) -> tuple[Parts, Parts]:
    """Last position and bag of two random halves of what training sees of the users `rows`, who have both halves."""
    dim, one, learned = whole.shape.embedding_dim, random_half(log, seed), in_training(log)
    halves = [part_of(log, half & learned, rows, preprocessing).features for half in (one, ~one)]
    in_both = torch.from_numpy(np.logical_and(*(half.lengths > 0 for half in halves)))
    first, second = (embedded(whole, half, whole.shape)[in_both] for half in halves)

    def parts(users: Tensor) -> Parts:
        return functional.normalize(users[:, dim : 2 * dim]), functional.normalize(users[:, 3 * dim :])

    return parts(first), parts(second)


def item_directions(
    log: Log, item_count: int, users: NDArray[np.intp], seed: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The rows of the items that were learned, (M,), and what an event of each adds to a bag, float32 (M, S)."""
    kept = in_training(log)
    user = np.repeat(np.arange(len(log.users)), log.features.lengths)
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
    """Histories → whole user embeddings (B, D + 2 D + S), as a release has them: the last position, then the rest.

    Without a `SegmentEmbedding` the last position is all there is. `shape` is the encoder's, but for `max_length`:
    how many events the whole reads, of which `encoder` gets the newest that it can read.
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
        found = (trained / SEGMENT_EMBEDDING).is_file()
        return cls(encoder, SegmentEmbedding.read(trained) if found else None).eval()

    def forward(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        """Whole user embeddings; inputs as of the encoder, each (B, L), L ≤ `shape.max_length`."""
        if isinstance(self.encoder, LoweredEncoder):
            return self.encoder.whole(item_index, action_index, value, gap_index)
        last, mean = self.encoder.last_and_mean(*self.newest(item_index, action_index, value, gap_index))
        return last if self.segments is None else torch.cat([last, self.segments(last, mean, item_index)], dim=-1)

    def newest(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> tuple[Tensor, ...]:
        """The newest events, as many as the encoder reads; the gap before the first of them is unknown to it."""
        columns = (item_index, action_index, value, gap_index)
        *others, gap = (column[:, -self.encoder.shape.max_length :] for column in columns)
        return *others, torch.cat([gap[:, :1].clamp(max=GAP_START), gap[:, 1:]], dim=1)

    @property
    def segment_dim(self) -> int:
        """How many numbers segments are made of."""
        dim = self.shape.embedding_dim
        return dim if self.segments is None else 2 * dim + self.segments.items.shape[1]

    def item_embeddings(self) -> Tensor:
        """Row r belongs to item index r + 1, (V, D)."""
        return self.encoder.item_embeddings()
