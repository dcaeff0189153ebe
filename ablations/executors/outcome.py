"""What became of the jobs, and who is told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ablations.engine.job import Job


class Reporter(Protocol):
    """Told what happens to the jobs."""

    def started(self, job: Job) -> None: ...
    def finished(self, job: Job) -> None: ...
    def failed(self, job: Job, message: str) -> None: ...
    def tick(self) -> None: ...


@dataclass
class Outcome:
    """Names of the jobs that are done, and of those that are not, with the reason."""

    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)


def critical_path(jobs: Sequence[Job]) -> dict[str, float]:
    """Return each job's effort plus that of the longest chain of jobs that wait for it."""
    effort = {job.name: job.effort for job in jobs}
    length = dict(effort)
    for job in reversed(jobs):  # needs come before the jobs that have them
        for need in job.needs:
            if need in length:
                length[need] = max(length[need], effort[need] + length[job.name])
    return length


def blocked_by(job: Job, outcome: Outcome) -> str | None:
    """Return why a job cannot run, if one that it needs failed."""
    failed = [need for need in job.needs if need in outcome.failed]
    return f"waits for {failed[0]}, which failed" if failed else None


def blocked(job: Job, outcome: Outcome, reporter: Reporter) -> bool:
    """Return whether a job cannot run because one that it needs failed; it is noted as failed."""
    if (reason := blocked_by(job, outcome)) is not None:
        outcome.failed[job.name] = reason
        reporter.failed(job, reason)
    return reason is not None
