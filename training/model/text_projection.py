"""The projection of a text vector to an item vector, for items without training events; a file of runs and releases."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from training.data.item_text import TextSource
from training.errors import RunError

ITEM_TEXT = "item_text.safetensors"
"""File name in the train and export directories and in a release."""


@dataclass(frozen=True)
class TextProjection:
    """Text vector t (T,) → item vector (D,): `weight` (D, T) @ t + `bias` (D,), all float32.

    `source` is the origin of the text vectors.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    source: TextSource

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Item vectors (n, D) of text vectors (n, T)."""
        projected: NDArray[np.float32] = vectors @ self.weight.T + self.bias
        return projected

    def write(self, path: Path) -> None:
        """Write the file in one step."""
        temporary = path.with_name(f".{path.name}")
        weights = {"weight": np.ascontiguousarray(self.weight), "bias": np.ascontiguousarray(self.bias)}
        save_file(weights, temporary, {"source": self.source.model_dump_json()})
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of `write`. Raises RunError if it is damaged."""
        try:
            with safe_open(path, "np") as file:
                source = TextSource.model_validate_json(file.metadata()["source"])
                return cls(file.get_tensor("weight"), file.get_tensor("bias"), source)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise RunError(f"{path} is damaged ({error}); export or copy it again.") from error
