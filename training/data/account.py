"""The account of a log: which rows were read, dropped and changed, and why. It adds up row by row."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import numpy as np
import polars as pl
from pydantic import model_validator
from rich.table import Table
from segrec.visible import visible

from server.core.frozen_model import FrozenModel

_ROWS_NAMED = 5


class Step(FrozenModel):
    """One line of the account; `rows_changed` counts changed rows that were not dropped.

    `first_rows` are the lowest numbers of dropped rows. Rows count from 1 over all files of the log, without headers;
    events that an earlier run has kept have no number, and are never named.
    """

    name: str
    rows_in: int
    rows_dropped: int = 0
    rows_changed: int = 0
    why: str
    first_rows: tuple[int, ...] = ()

    @property
    def rows_out(self) -> int:
        """Rows after the step."""
        return self.rows_in - self.rows_dropped


class LogPart(FrozenModel):
    """A file of the log, and its number of rows."""

    file: str
    rows: int


class TableRows(FrozenModel):
    """What became of the rows of an item or user table, counted as those of the log.

    `rows_dropped` have no id; `first_rows` are the lowest numbers of these, from 1 without the header. `rows_merged`
    repeat the id of an earlier row. `ids` are left, once each.
    """

    file: str
    rows_in: int
    rows_dropped: int
    first_rows: tuple[int, ...]
    rows_merged: int
    ids: int

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.rows_in != self.rows_dropped + self.rows_merged + self.ids:
            raise ValueError(f"the account of {self.file} does not add up: {self}")
        return self


class Account(FrozenModel):
    """The record of a cleaning, `account.json`: the steps in order, and notes. `rows_in` and `rows_out` are totals.

    `rows_in` is counted from the bytes of the log, apart from the reader. `files` has the parts of a log of several.
    `tables` are the item and the user table, if they are given.
    """

    rows_in: int
    rows_out: int
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    files: tuple[LogPart, ...] = ()
    tables: tuple[TableRows, ...] = ()

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        counts = (
            self.rows_in,
            *(count for step in self.steps for count in (step.rows_in, step.rows_out)),
            self.rows_out,
        )
        if any(before != after for before, after in list(pairwise(counts))[::2]):
            raise ValueError(f"the account does not add up: {counts}")
        return self

    def table(self) -> Table:
        """A table for people: the steps that dropped or changed rows, then the notes."""
        table = Table(title=f"{self.rows_in:,} events read, {self.rows_out:,} kept")
        for heading, justify in (("step", "left"), ("dropped", "right"), ("changed", "right"), ("why", "left")):
            table.add_column(heading, justify="right" if justify == "right" else "left")
        for step in self.steps:
            if step.rows_dropped or step.rows_changed:
                table.add_row(
                    step.name, f"{step.rows_dropped:,}", f"{step.rows_changed:,}", visible(step.why + self._rows(step))
                )
        for note in self.notes:
            table.add_row("note", "", "", visible(note))
        return table

    def _rows(self, step: Step) -> str:
        if not step.first_rows:
            return ""
        more = ", …" if step.rows_dropped > len(step.first_rows) else ""
        return f" ({', '.join(row_name(row, self.files) for row in step.first_rows)}{more})"


def row_name(row: int, files: Sequence[LogPart]) -> str:
    """A row for people; of a log of several files, its number within its file."""
    for file in files:
        if row <= file.rows:
            return f"row {row:,} of {file.file}"
        row -= file.rows
    return f"row {row:,}"


def dropping_step(name: str, before: pl.DataFrame, after: pl.DataFrame, why: str, rows_changed: int = 0) -> Step:
    """The step that made `after` from `before` by dropping rows; the column `row`, if any, has their numbers."""
    dropped = len(before) - len(after)
    rows = _first_missing(before["row"], after["row"]) if dropped and "row" in before.columns else ()
    return Step(
        name=name, rows_in=len(before), rows_dropped=dropped, rows_changed=rows_changed, why=why, first_rows=rows
    )


def lowest(rows: Sequence[pl.Series]) -> tuple[int, ...]:
    """The row numbers that a step names: the lowest of these."""
    return tuple(pl.concat(rows).drop_nulls().bottom_k(_ROWS_NAMED).sort()) if rows else ()


def _first_missing(before: pl.Series, after: pl.Series) -> tuple[int, ...]:
    """The lowest row numbers of `before` that `after` lacks."""
    before, after = before.drop_nulls(), after.drop_nulls()
    highest = before.max()
    if not isinstance(highest, int):
        return ()
    missing = np.zeros(highest + 1, np.bool_)
    missing[before.to_numpy()] = True
    missing[after.to_numpy()] = False
    return tuple(int(row) for row in np.flatnonzero(missing)[:_ROWS_NAMED])
