"""Points in files, a part at a time: what the workers of a cluster read, each its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.errors import LogError


@dataclass(frozen=True, slots=True)
class Partition:
    """The rows from `start` to `stop` - 1 of the points (N, D) in a file.

    The file is a `.npy`, or a Parquet file: either a number a column, or one column of arrays of D numbers. `array`
    says where a `.npy` has its numbers.
    """

    path: Path
    start: int
    stop: int
    array: "Array | None" = None

    def __len__(self) -> int:
        return self.stop - self.start

    def first(self, rows: int) -> "Partition":
        """Its first `rows`, or all where there are fewer: enough to see what the points are like."""
        return replace(self, stop=min(self.stop, self.start + rows))

    def read(self) -> NDArray[np.float32]:
        """The points (n, D); those of a `.npy` of float32 are mapped, and read where they are used."""
        if self.array:
            return np.ascontiguousarray(self.array.mapped(self.path)[self.start : self.stop], np.float32)
        table = pl.scan_parquet(self.path).slice(self.start, len(self)).collect()
        points = table.to_series().to_numpy() if table.width == 1 else table.to_numpy()
        return np.ascontiguousarray(points.reshape(len(self), -1), np.float32)


@dataclass(frozen=True, slots=True)
class Array:
    """What the header of a `.npy` file says.

    Workers are told, and do not read it: NumPy does so by `ast.literal_eval`, which in Python 3.11 fails now and then
    when several threads of a process are at it.
    """

    offset: int
    dtype: str
    shape: tuple[int, ...]
    order: Literal["C", "F"]

    @classmethod
    def of(cls, path: Path) -> "Array":
        """Read the header. Raises ValueError for arrays of anything but numbers."""
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if not np.issubdtype(mapped.dtype, np.number):
            raise ValueError(f"its entries are {mapped.dtype}, not numbers")
        return cls(mapped.offset, mapped.dtype.str, mapped.shape, "F" if mapped.flags.fnc else "C")

    def mapped(self, path: Path) -> NDArray[np.number]:
        """The whole array, none of it read."""
        return np.memmap(path, self.dtype, "r", self.offset, self.shape, self.order)


def partition_shape(paths: Sequence[Path]) -> tuple[int, int]:
    """N and D of the points in all files.

    Raises LogError for files that hold no points, or whose points have several dimensions.
    """
    shapes = [(path, rows, dimension) for path in paths for rows, dimension, _ in [_opened(path)] if rows]
    if not shapes:
        raise LogError(f"There are no points in {', '.join(path.name for path in paths) or 'no files'}.")
    dimensions = {dimension for _, _, dimension in shapes}
    if len(dimensions) > 1:
        told = ", ".join(f"{path.name} has {dimension}" for path, _, dimension in shapes)
        raise LogError(f"All points need the same number of dimensions, and {told}.")
    return sum(rows for _, rows, _ in shapes), dimensions.pop()


def parts_of(paths: Sequence[Path], rows_at_once: int) -> tuple[Partition, ...]:
    """All rows of the files in order, in parts of `rows_at_once` at most."""
    return tuple(
        Partition(path, start, min(start + rows_at_once, rows), array)
        for path in paths
        for rows, _, array in [_opened(path)]
        for start in range(0, rows, rows_at_once)
    )


def _opened(path: Path) -> tuple[int, int, Array | None]:
    """Rows and dimension of a file's points, and where they lie in a `.npy`."""
    array = None
    try:
        if path.suffix == ".npy":
            shape = (array := Array.of(path)).shape
        else:
            rows = pl.scan_parquet(path).select(pl.len()).collect().item()
            shape = (rows, Partition(path, 0, 1).read().shape[1]) if rows else (0, 0)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise LogError(f"{path} cannot be read as points, in a .npy or Parquet file of numbers: {error}") from error
    if len(shape) != 2:
        raise LogError(f"{path} has an array of {len(shape)} dimensions; points need two: rows, and numbers of a row.")
    return int(shape[0]), int(shape[1]), array
