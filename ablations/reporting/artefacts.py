"""A table or figure of the paper as files: what is seen, the data behind it, and the words."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from ablations.reporting.pictures import Picture, save_picture
from ablations.reporting.table import Table
from ablations.reporting.table_files import csv_text, save_table
from scorekit.files import write_file


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A picture or a table with the data that it shows.

    `frames` become `<name>.csv` and `arrays` together `<picture's name>.npz`; a table needs
    neither, since its own CSV holds its numbers.
    """

    shown: Picture | Table
    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def save_artefacts(artefacts: Sequence[Artefact], directory: Path) -> list[Path]:
    """Write every file of the artefacts, and `caption.md` last; the paths.

    The same artefacts give the same bytes. Raises ValueError where two of them would share a file.
    """
    paths: list[Path] = []
    for artefact in artefacts:
        if isinstance(artefact.shown, Table):
            paths += save_table(artefact.shown, directory)
        else:
            paths += save_picture(artefact.shown, directory)
        for name, frame in artefact.frames.items():
            paths.append(write_file(directory / f"{name}.csv", csv_text(frame)))
        if artefact.arrays:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **cast(dict[str, Any], artefact.arrays))
            paths.append(write_file(directory / f"{artefact.shown.name}.npz", buffer.getvalue()))
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"two artefacts would write {twice.name}")
    words = "\n".join(f"## {a.shown.title}\n\n{a.shown.caption}\n" for a in artefacts)
    return [*paths, write_file(directory / "caption.md", words)]
