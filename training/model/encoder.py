"""The encoder: a causal Transformer over a user's events, trained to name the next item.

Blocks follow LiGR (Borisyuk et al. 2025, "From Features to Transformers"): norm first, attention and a SwiGLU
feed-forward part (Shazeer 2020), each added through a learned gate. Nothing depends on how far a batch is padded:
positions are counted from the newest event, and no event attends to padding.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.core.features import GAP_COUNT
from training.data.item_text import ItemText
from training.errors import RunError
from training.model.category_tower import CategoryTower, ItemCategories
from training.model.dropout import Dropout
from training.model.loss import ItemVectors
from training.model.text_tower import TextTower

VALUE_LIMIT = 10.0
"""Normalised values are clipped to ± this, so that a single extreme value cannot dominate a user embedding."""

_INIT_STD = 0.02

TOWERS = (TextTower, CategoryTower)
"""Modules that can replace the embedding table of ids during training."""


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """The sizes that determine the encoder's weights. `item_count` and `action_count` do not count padding.

    `hidden` is the number of units of each feed-forward part; 0 chooses it from `embedding_dim`.
    """

    item_count: int
    action_count: int
    max_length: int
    embedding_dim: int
    layers: int
    heads: int
    hidden: int = 0

    @classmethod
    def read(cls, path: Path) -> Self:
        """The shape in a JSON file. Raises RunError for a file of another version of the program."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except TypeError as error:
            raise RunError(f"{path} was written by another version of segrec-train; train this run again.") from error


class Block(nn.Module):
    """One LiGR block, (B, L, D) → (B, L, D)."""

    def __init__(self, dim: int, heads: int, dropout: float, hidden: int = 0) -> None:
        super().__init__()
        # SwiGLU has three matrices; this width gives them as many weights as the usual two of 4 × dim.
        hidden = hidden or 8 * -(-dim * 8 // 3 // 8)
        self.heads = heads
        self.attention_norm = nn.RMSNorm(dim, eps=1e-6)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim, bias=False)
        self.attention_gate = nn.Linear(dim, dim)
        self.forward_norm = nn.RMSNorm(dim, eps=1e-6)
        self.forward_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.forward_out = nn.Linear(hidden, dim, bias=False)
        self.forward_gate = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor, last_only: bool = False) -> Tensor:
        """Apply the block; `visible` (B, 1, L or 1, L) is true where a query may attend to a key.

        With `last_only`, only the last position is computed, (B, 1, D), and `visible` is the row of this position.
        """
        normed = self.attention_norm(x)
        if last_only:
            x = x[:, -1:]
        query = self._split(self.query(normed[:, -1:] if last_only else normed))
        key, value = self.key_value(normed).chunk(2, dim=-1)
        attended: Tensor = functional.scaled_dot_product_attention(query, self._split(key), self._split(value), visible)
        attended = self.attention_out(attended.transpose(1, 2).flatten(2))
        x = x + self.dropout(attended) * torch.sigmoid(self.attention_gate(x))
        gate, content = self.forward_in(self.forward_norm(x)).chunk(2, dim=-1)
        fed: Tensor = self.forward_out(functional.silu(gate) * content)
        return torch.addcmul(x, self.dropout(fed), torch.sigmoid(self.forward_gate(x)))

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, heads, L, D / heads)."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Encoder(nn.Module):
    """Histories → user embeddings; inputs as in `server.core.features.Inputs`, each (B, L), L ≤ `max_length`."""

    def __init__(self, shape: EncoderShape, dropout: float = 0.0) -> None:
        super().__init__()
        dim = shape.embedding_dim
        self.shape = shape
        self.item: nn.Embedding | TextTower | CategoryTower = nn.Embedding(shape.item_count + 1, dim)
        self.action = nn.Embedding(shape.action_count + 1, dim)
        self.gap = nn.Embedding(GAP_COUNT, dim)
        self.position = nn.Embedding(shape.max_length, dim)
        self.value = nn.Linear(1, dim, bias=False)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, shape.heads, dropout, shape.hidden) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.bias = nn.Parameter(torch.zeros(dim))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        """User embeddings (B, D), from the last position. The product with a row of `item_embeddings` is a logit."""
        return self.last_and_mean(item_index, action_index, value, gap_index)[0]

    def last_and_mean(
        self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """User embeddings (B, D), and the mean over events of the last block's input, (B, D)."""
        x, visible = self._embed(item_index, action_index, value, gap_index)
        for block in self.blocks[:-1]:
            x = block(x, visible)
        real = (item_index > 0).unsqueeze(-1).to(x.dtype)
        mean = (x * real).sum(1) / real.sum(1).clamp(min=1)
        x = self.blocks[-1](x, visible[:, :, -1:], True)
        embedding: Tensor = self.norm(x.squeeze(1)) + self.bias
        return embedding, mean

    def sequence(self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor) -> Tensor:
        """The user embedding after each event, (B, L, D); rows of padding have no meaning."""
        x, visible = self._embed(item_index, action_index, value, gap_index)
        for block in self.blocks:
            x = block(x, visible)
        embeddings: Tensor = self.norm(x) + self.bias
        return embeddings

    def start_from_popularity(self, event_counts: Tensor) -> None:
        """Initialise a new encoder so that its logits follow the items' event counts, (V,), instead of being equal.

        The popularity common to all users is put into one random direction of the embedding space, and training can
        use the others.
        """
        log_counts = event_counts.clamp(min=1).log()
        direction = functional.normalize(torch.randn(self.shape.embedding_dim), dim=0)
        scale = self.shape.embedding_dim**0.5
        with torch.no_grad():
            self.bias.copy_(direction * scale)
            self._ids.weight[1:] += (log_counts - log_counts.mean())[:, None] / scale * direction

    def item_embeddings(self) -> Tensor:
        """Item vectors, by which items are both read and predicted: row r belongs to item index r + 1, (V, D)."""
        return self.item.table() if isinstance(self.item, TOWERS) else self.item.weight[1:]

    def item_rows(self) -> ItemVectors:
        """Item vectors for the loss: the table, or a look-up of rows where a tower or sparse gradients need it."""
        if isinstance(self.item, TOWERS):
            return self.item.rows
        return self._vectors_of if self._ids.sparse else self.item_embeddings()

    def use_sparse_gradients(self) -> None:
        """Make the gradients of the item table sparse: only rows that a step looked up."""
        self._ids.sparse = True

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile each block in place, for any batch size and length; names of weights do not change."""
        for block in self.blocks:
            block.compile(dynamic=True, backend=backend)

    def use_text(self, text: ItemText, event_counts: Tensor) -> None:
        """Replace the item table by a `TextTower`."""
        self.item = TextTower(self._ids, text, event_counts)

    def use_categories(self, categories: ItemCategories) -> None:
        """Replace the item table by a `CategoryTower`."""
        self.item = CategoryTower(self._ids, categories)

    def plain_state(self) -> dict[str, Tensor]:
        """Weights of an equivalent encoder with a plain item table: the vectors of a tower are computed."""
        if not isinstance(self.item, TOWERS):
            return self.state_dict()
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("item.")}
        with torch.no_grad():
            state["item.weight"] = torch.cat([self.item.ids.weight[:1], self.item.table()])
        return state

    def _vectors_of(self, rows: Tensor | None) -> Tensor:
        if rows is None:
            return self.item_embeddings()
        vectors: Tensor = self.item(rows + 1)
        return vectors

    @property
    def _ids(self) -> nn.Embedding:
        return self.item.ids if isinstance(self.item, TOWERS) else self.item

    def _embed(
        self, item_index: Tensor, action_index: Tensor, value: Tensor, gap_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sum of the inputs' embeddings, (B, L, D), and the attention mask, (B, 1, L, L), true where allowed."""
        length = item_index.shape[1]
        places = torch.arange(length, device=item_index.device)
        limited = value.clamp(-VALUE_LIMIT, VALUE_LIMIT).unsqueeze(-1)
        x = self.item(item_index) * self.shape.embedding_dim**0.5 + self.action(action_index) + self.gap(gap_index)
        x = x + self.value(limited) + self.position(length - 1 - places)
        causal = places[:, None] >= places
        # A padding row with nothing to attend to would become NaN, so every position attends to itself.
        visible = (causal & (item_index > 0)[:, None, :]) | (places[:, None] == places)
        return self.dropout(x), visible.unsqueeze(1)
