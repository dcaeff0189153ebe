"""Data frames of records, with the same columns whatever there is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd


def cast(name: str, frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    for column, dtype in columns.items():
        # astype(bool) would read NaN and "False" as True.
        if frame[column].dtype == dtype:
            continue
        if dtype == "bool" and not all(value in (True, False) for value in frame[column].dropna()):
            raise ValueError(f"{name}.{column}: not all values are True or False")
        if dtype == "bool" and frame[column].isna().any():
            raise ValueError(f"{name}.{column}: a value is missing")
    try:
        return frame.astype(dict(columns)).reset_index(drop=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def make_frame(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """Frame with exactly the given columns and types; a row may leave out what it has not got.

    Raises ValueError when a row has a key that is no column, or lacks one that must be there
    (a bool cannot be missing).
    """
    rows = list(rows)
    flags = [name for name, dtype in columns.items() if dtype == "bool"]
    for row in rows:
        if not row.keys() <= columns.keys():
            unknown = min(row.keys() - columns.keys())
            raise ValueError(f"unknown column {unknown!r}; known: {', '.join(columns)}")
        for name in flags:
            if not isinstance(row.get(name), bool):
                raise ValueError(f"{name}: {row.get(name)!r} is not True or False")
    # Column by column, which takes pandas a third of the time of a list of rows.
    found = {name: [row.get(name, np.nan) for row in rows] for name in columns}
    return pd.DataFrame(found, columns=list(columns)).astype(dict(columns))
