"""Points in files, a part at a time: what the workers of a cluster read, each its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.errors import LogError


@dataclass(frozen=True, slots=True)
class Part:
    """The rows from `start` to `stop` - 1 of the points (N, D) in a file.

    The file is a `.npy`, or a Parquet file: either a number a column, or one column of arrays of D numbers.
    """

    path: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self) -> NDArray[np.float32]:
        """The points (n, D); those of a `.npy` of float32 are mapped, and read where they are used."""
        if self.path.suffix == ".npy":
            mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
            return np.ascontiguousarray(mapped[self.start : self.stop], np.float32)
        table = pl.scan_parquet(self.path).slice(self.start, len(self)).collect()
        points = table.to_series().to_numpy() if table.width == 1 else table.to_numpy()
        return np.ascontiguousarray(points.reshape(len(self), -1), np.float32)


def shape_of(paths: Sequence[Path]) -> tuple[int, int]:
    """N and D of the points in all files.

    Raises LogError for files that hold no points, or whose points have several dimensions.
    """
    shapes = [_shape(path) for path in paths]
    if len({dimension for _, dimension in shapes}) > 1:
        told = ", ".join(f"{path.name} has {dimension}" for path, (_, dimension) in zip(paths, shapes, strict=True))
        raise LogError(f"All points need the same number of dimensions, and {told}.")
    rows = sum(rows for rows, _ in shapes)
    if not rows:
        raise LogError(f"There are no points in {', '.join(path.name for path in paths) or 'no files'}.")
    return rows, shapes[0][1]


def parts_of(paths: Sequence[Path], rows_at_once: int) -> tuple[Part, ...]:
    """All rows of the files in order, in parts of `rows_at_once` at most."""
    return tuple(
        Part(path, start, min(start + rows_at_once, rows))
        for path in paths
        for rows in [_shape(path)[0]]
        for start in range(0, rows, rows_at_once)
    )


def _shape(path: Path) -> tuple[int, int]:
    """Rows and dimension of a file's points."""
    try:
        if path.suffix == ".npy":
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
        else:
            rows = pl.scan_parquet(path).select(pl.len()).collect().item()
            shape = (rows, Part(path, 0, 1).read().shape[1]) if rows else (0, 0)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise LogError(f"{path} cannot be read as points, in a .npy or Parquet file of numbers: {error}") from error
    if len(shape) != 2:
        raise LogError(f"{path} has an array of {len(shape)} dimensions; points need two: rows, and numbers of a row.")
    return int(shape[0]), int(shape[1])
