"""A job: what one process runs in a row, and all that an executor has to know of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from ablations.engine.context import Context
from scorekit.runtime.interruption import never

JobT = TypeVar("JobT", bound="Job")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a running job is given: where and how, whom to tell, and when to stop.

    ``progress`` gets the fraction done, in [0, 1], and what is being done. Where ``stop`` says
    True, the job raises Stopped at its next opportunity and goes on from its files when run again.
    """

    context: Context
    progress: Callable[[float, str], None]
    stop: Callable[[], bool] = never


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """One kind of job is one subclass.

    ``needs`` are the names of jobs that must be done before, ``after`` of those that must have
    ended, however. A job that is ``alone`` is timed: nothing else may run on its machine.
    """

    #: What such jobs are called in a queue.
    kind: ClassVar[str]
    #: Which of Slurm's settings they are given: "train" or "evaluate".
    resources: ClassVar[str] = "evaluate"
    #: Whether all ranks of a world run it together; otherwise the first does.
    together: ClassVar[bool] = False

    #: Whether files that it writes let others start before it has ended.
    lets_start: ClassVar[bool] = False

    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    alone: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """A file name, unique in the output folder."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What a person reads in the log."""

    @property
    def effort(self) -> float:
        """How much work it is beside the others: for the order and for the progress."""
        return 1.0

    @property
    def disk_bytes(self) -> int:
        """About how much it writes."""
        return 0

    @property
    def part_of(self) -> str | None:
        """The name of a job that does this one's work where it was not done; None: of no other.

        Such a job is worth sending only where jobs wait in a queue, and its failure is none.
        """
        return None

    def starts_with(self, context: Context) -> Path | None:
        """Return the file whose appearance lets it start before its needs are done, or None."""
        return None

    @abstractmethod
    def is_done(self, context: Context, *, thorough: bool = True) -> bool:
        """Return whether all of its results are there and intact.

        Without ``thorough`` what nothing is computed from is not looked at.
        """

    @abstractmethod
    def run(self, work: Work) -> None:
        """Make what is missing of the results."""


def without_parts(jobs: Iterable[JobT]) -> list[JobT]:
    """Return the jobs that do work of their own: all that a machine without a queue runs."""
    return [job for job in jobs if job.part_of is None]
