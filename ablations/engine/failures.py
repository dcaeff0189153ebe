"""What a job that failed leaves behind: one file that says how, and why."""

import time
import traceback
from pathlib import Path
from typing import Any

from scorekit.files import CorruptFile, read_json, set_aside, write_json
from scorekit.runtime.distributed import RankDied
from scorekit.runtime.interruption import Diverged

_KINDS = ("failed", "diverged", "lost")


def failure_path(out: Path, job_name: str) -> Path:
    """Return the file that a failed job leaves: kind, message, traceback, when.

    Kinds are "failed", "diverged" and "lost", where one of its processes was: run again, the job
    goes on.
    """
    return out / "jobs" / f"{job_name}.failure.json"


def record_failure(out: Path, job_name: str, error: Exception) -> None:
    """Write the file for an error; one that tells of the loss of another rank replaces none."""
    path = failure_path(out, job_name)
    kind = "diverged" if isinstance(error, Diverged | FloatingPointError) else "failed"
    if isinstance(error, RankDied):
        if path.exists():
            return
        kind = "lost"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {
            "kind": kind,
            "message": str(error) or type(error).__name__,
            "traceback": "".join(traceback.format_exception(error)),
            "when": time.time(),
        },
    )


def read_failure(out: Path, job_name: str) -> dict[str, Any] | None:
    """Return the record that a failed job left (kind and message, two texts), or None."""
    path = failure_path(out, job_name)
    try:
        record = read_json(path)
        if not (
            isinstance(record, dict)
            and record.get("kind") in _KINDS
            and isinstance(record.get("message"), str)
        ):
            raise CorruptFile(path, "is no record of a failure")
        return record
    except FileNotFoundError:
        return None
    except CorruptFile as error:
        return {"kind": "failed", "message": str(error)}


def clear_failure(out: Path, job_name: str) -> None:
    """Forget a failure: the job is about to run again."""
    path = failure_path(out, job_name)
    try:
        path.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):  # what unlink says of directories
        if not path.is_dir():
            raise
        set_aside(path)
