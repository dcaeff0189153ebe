"""A table: what is shown, and the numbers behind it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: `raw` for programs, `display` for readers, row by row the same.

    `kinds` says of each row what it is: "ours", "pending", "problem", "reference" or "paper".
    `numeric` names the display columns to align right.
    """

    name: str
    title: str
    caption: str
    raw: pd.DataFrame
    display: pd.DataFrame
    kinds: tuple[str, ...]
    numeric: tuple[str, ...]
