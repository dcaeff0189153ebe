"""A table: what is shown, and the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd


class Column:
    """A column as it is read: its heading, and a text for each row.

    Cells of a `number` stand at the right and sort as the numbers shown; with `by`, any cells sort
    as the numbers of the raw column of that name, shown or not.
    """

    def __init__(
        self, heading: str, cells: Iterable[object], *, number: bool = False, by: str | None = None
    ) -> None:
        self.heading, self.number, self.by = heading, number, by
        self.texts = tuple(map(str, cells))


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: `raw` for programs and `columns` for readers, row by row the same.

    The first column says what the rows are grouped by: their data set, as a rule. `kinds` says of
    each row what it is: "ours", "pending", "problem", "reference" or "paper".
    """

    name: str
    title: str
    caption: str
    raw: pd.DataFrame
    columns: tuple[Column, ...]
    kinds: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = {len(column.texts) for column in self.columns}
        if lengths | {len(self.kinds), len(self.raw)} != {len(self.kinds)}:
            raise ValueError(f"table {self.name}: raw rows, kinds and columns differ in length")

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The texts, row by row."""
        return list(zip(*(column.texts for column in self.columns), strict=True))

    @property
    def display(self) -> pd.DataFrame:
        """The texts as a frame, by heading."""
        return pd.DataFrame({c.heading: list(c.texts) for c in self.columns}, dtype="str")
