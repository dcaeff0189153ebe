"""The small file in which a job tells how far it is."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablations.engine.context import Context
from ablations.engine.job import Job
from scorekit.files import CorruptFile, read_json, write_json


def read_progress(job: Job, context: Context) -> dict[str, Any] | None:
    """Return a job's last progress (fraction, text, updated, began, began_fraction), or None.

    A damaged file is none.
    """
    try:
        record = read_json(progress_path(context.out, job.name))
    except (FileNotFoundError, CorruptFile):
        return None
    numbers = ("fraction", "updated", "began", "began_fraction")
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        return None
    return record if all(isinstance(record.get(n), int | float) for n in numbers) else None


def progress_path(out: Path, job_name: str) -> Path:
    """Return the file with a job's progress."""
    return out / "jobs" / f"{job_name}.progress.json"


class Progress:
    """Work done by one job, written to a small file that the launcher reads."""

    def __init__(
        self, path: Path, on_update: Callable[[], None] = lambda: None, *, write: bool = True
    ) -> None:
        self._path, self._on_update, self._write = path, on_update, write
        self._written = 0.0
        self._began: tuple[float, float] | None = None

    def __call__(self, fraction: float, text: str) -> None:
        """Report the fraction done and what is being done; written at most once a second."""
        now = time.monotonic()
        if self._write and now - self._written >= 1.0:
            self._written = now
            self._path.parent.mkdir(parents=True, exist_ok=True)
            updated = time.time()
            # What an earlier process did says nothing about this one's speed.
            self._began = self._began or (updated, fraction)
            record = dict(zip(("began", "began_fraction"), self._began, strict=True))
            write_json(
                self._path, record | {"fraction": fraction, "text": text, "updated": updated}
            )
            self._on_update()
