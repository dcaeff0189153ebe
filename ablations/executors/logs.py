"""The end of a job's log, for people."""

import os
from pathlib import Path

_TAIL_BYTES = 8192


def last_lines(path: Path, n: int = 3) -> str:
    """Return the last lines of a text file that are not empty, on one line."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return " | ".join([line.strip() for line in lines if line.strip()][-n:])
