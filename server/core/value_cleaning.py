"""Does to the values of callers what `[clean]` did to the values of the log, so that the encoder reads what it learned.

Values of a cleaned log stay as they are.
"""

import numpy as np
from numpy.typing import NDArray

from server.core.preprocessing import VALUE_MAX, ValueCleaning

Values = NDArray[np.float64]


def cleaned_values(values: Values, row: NDArray[np.int64], cleaning: ValueCleaning) -> Values:
    """Values (N,) filled in and clipped; NaN is a missing value. `row` (N,) is the history of each event.

    Values beyond `VALUE_MAX` are missing too. A missing value is interpolated between its neighbours among the events
    that are given.
    """
    beyond = np.abs(values) > VALUE_MAX
    if beyond.any():
        values = np.where(beyond, np.nan, values)
    missing = np.isnan(values) if cleaning.missing in ("fill", "interpolate") else np.zeros(0, np.bool_)
    if missing.any():
        values = values.copy()
        if cleaning.missing == "fill":
            values[missing] = cleaning.fill
        else:
            for history in np.unique(row[missing]).tolist():
                _interpolate(values[np.searchsorted(row, history) : np.searchsorted(row, history, side="right")])
    if cleaning.bounds and not cleaning.drop_outside:
        return np.clip(values, *cleaning.bounds)
    return values


def usable_values(values: Values, cleaning: ValueCleaning) -> NDArray[np.bool_] | None:
    """Which events (N,) with cleaned `values` are not left out; None if none can be left out."""
    usable = None
    if cleaning.missing == "drop":
        usable = ~np.isnan(values)
    if cleaning.bounds and cleaning.drop_outside:
        low, high = cleaning.bounds
        inside = ~((values < low) | (values > high))
        usable = inside if usable is None else usable & inside
    return usable


def _interpolate(values: Values) -> None:
    """Fill the missing values of one history in place; nothing if all are missing."""
    known = np.flatnonzero(~np.isnan(values))
    if len(known):
        values[:] = np.interp(np.arange(len(values)), known, values[known])
