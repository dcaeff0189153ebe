"""``OUT/slurm/<token>.json``: what was sent to Slurm, written before it is sent and again after.

A launcher that dies in between leaves a record without ids. Its token ends the name of the jobs in
Slurm, which therefore can be asked whether they arrived.
"""

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations.engine.context import Context
from ablations.engine.job import Job
from ablations.engine.manifest import read_versioned
from ablations.engine.naming import file_name
from ablations.engine.stages import RESULTS_VERSION
from scorekit.files import write_sealed_json

_FORMAT = 1
REPORT = "report"  # the name of the job that makes the report


def _new_token() -> str:
    return f"scorekit-{secrets.token_hex(5)}"


@dataclass(frozen=True)
class Entry:
    """One job of an array: its name and, where a file lets it start, which and who writes it."""

    name: str
    starts_with: str = ""  # relative to the output folder
    need: str = ""  # the name of the job that writes it

    @classmethod
    def of(cls, job: Job, context: Context) -> "Entry":
        """Return the entry of a job."""
        path = job.starts_with(context)
        if path is None:
            return cls(job.name)
        return cls(job.name, os.path.relpath(path, context.out), job.needs[0])


@dataclass(frozen=True, kw_only=True)
class Submission:
    """An array of jobs that were, or were about to be, submitted together."""

    entries: tuple[Entry, ...]
    slurm_id: str | None = None  # of the array; None: not known to have arrived
    dependency: str = ""
    token: str = field(default_factory=_new_token)
    created: float = field(default_factory=time.time)
    title: str = ""  # what the jobs' name in Slurm begins with: "paper-train"

    @classmethod
    def named(cls, grid: str, kind: str, **values: Any) -> "Submission":
        """Return a new submission of jobs of a kind, whose name in Slurm tells grid and kind."""
        # Slurm's clients take names apart at commas.
        return cls(title=f"{file_name(grid).replace(',', '-')}-{kind}", **values)

    @property
    def name(self) -> str:
        """What the jobs are called in Slurm: no other submission's are called so."""
        return f"{self.title}-{self.token}" if self.title else self.token

    def element_id(self, index: int) -> str:
        """Return Slurm's id of one job of an array that arrived: "17_0", or "17" for one alone."""
        assert self.slurm_id is not None
        return self.slurm_id if len(self.entries) == 1 else f"{self.slurm_id}_{index}"

    def elements(self) -> Iterator[tuple[str, Entry]]:
        """Yield Slurm's id and the entry of each job, if it arrived."""
        if self.slurm_id is not None:
            for index, entry in enumerate(self.entries):
                yield self.element_id(index), entry


def submission_path(out: Path, token: str) -> Path:
    """Return the file of a submission."""
    return out / "slurm" / f"{token}.json"


def save_submission(submission: Submission, out: Path) -> None:
    """Write a submission's file atomically."""
    path = submission_path(out, submission.token)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed_json(
        path,
        {
            "format": _FORMAT,
            "results_version": RESULTS_VERSION,
            "token": submission.token,
            "title": submission.title,
            "slurm_id": submission.slurm_id,
            "dependency": submission.dependency,
            "created": submission.created,
            # Jobs of an earlier version, which may wait in the queue still, read three of each.
            "entries": [[entry.name, "", 0] for entry in submission.entries],
            "starts": [[entry.starts_with, entry.need] for entry in submission.entries],
        },
    )


def load_submission(path: Path) -> Submission | None:
    """Return a file's submission, or None where there is none; ValueError for a damaged one."""
    return read_versioned(
        path,
        _FORMAT,
        lambda record: Submission(
            entries=tuple(_entries(record)),
            slurm_id=record["slurm_id"],
            dependency=record["dependency"],
            token=record["token"],
            created=record["created"],
            # Records of earlier versions have none: their jobs are called by the token alone.
            title=record.get("title", ""),
        ),
    )


def _entries(record: dict[str, Any]) -> Iterator[Entry]:
    names = [str(name) for name, _, _ in record["entries"]]
    # Records of earlier versions do not say.
    starts = record.get("starts", [["", ""]] * len(names))
    for name, (path, need) in zip(names, starts, strict=True):
        yield Entry(name, str(path), str(need))


def load_submissions(out: Path) -> list[Submission]:
    """Return the submissions of an output folder, oldest first; ValueError for a damaged file."""
    found = [load_submission(path) for path in (out / "slurm").glob("scorekit-*.json")]
    return sorted((s for s in found if s is not None), key=lambda s: s.created)


def latest_ids(submissions: Sequence[Submission]) -> dict[str, str]:
    """Return Slurm's id of the latest submission of each job that arrived, by the job's name."""
    return {entry.name: element for s in submissions for element, entry in s.elements()}


def superseded(submissions: Sequence[Submission]) -> list[Submission]:
    """Return those of which every job was submitted again since; the queue may hold them yet."""
    latest = set(latest_ids(submissions).values())
    return [
        s
        for s in submissions
        if s.slurm_id is not None and latest.isdisjoint(element for element, _ in s.elements())
    ]
