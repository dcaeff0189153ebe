"""What a job does inside Slurm: it lets others start, and goes back to the queue in time."""

import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ablations.engine.context import Context
from ablations.engine.job import Job
from ablations.engine.progress import read_progress
from ablations.engine.refresh import refresh_report
from ablations.engine.run import run_job
from ablations.executors.local import submitted_world
from ablations.executors.slurm.queue import SlurmError, clear_dependency, queued_jobs, requeue
from ablations.executors.slurm.submissions import load_submission, load_submissions, submission_path
from scorekit.files import read_json, write_json
from scorekit.runtime.distributed import RankDied, leave
from scorekit.runtime.interruption import Stopped

_log = logging.getLogger("scorekit")
#: submitit's signal, which Slurm sends before the end of the time and, where the cluster is set so,
#: before preemption.
_WARNING = signal.SIGUSR2
_TOLD_BY = (_WARNING, signal.SIGTERM)
_RELEASE_EVERY_S = 5.0
_REQUEUE_EVERY_S = 10.0
_KILLED_WITHIN_S = 600.0
_DEATHS_WITHOUT_PROGRESS = 3


def patient_python() -> str:
    """Return the shell's words for a Python that Slurm's warning cannot kill while it starts.

    The warning then waits until :class:`Warned` takes it.
    """
    code = (
        "import os, signal, sys; "
        f"signal.pthread_sigmask(signal.SIG_BLOCK, {sorted(map(int, _TOLD_BY))}); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return shlex.join([sys.executable, "-S", "-c", code, sys.executable])


class Warned:
    """Whether the job was told that its end is near; true from then on.

    A job that cannot stop within ``patience_s``, being inside something long, goes back to the
    queue as it is. A job that is only terminated saves its state and waits to be killed: whether it
    is cancelled or preempted, Slurm knows what comes next.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._received: set[int] = set()
        for number in _TOLD_BY:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TOLD_BY)

    def __call__(self) -> bool:
        return bool(self._received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number not in self._received and number == _WARNING:
            timer = threading.Timer(self._patience_s, requeue_this_job)
            timer.daemon = True
            timer.start()
        self._received.add(number)

    def leave(self) -> NoReturn:
        """Go back to the queue, if need be after waiting to be killed; never return.

        What was terminated and neither warned nor killed in time still has its place.
        """
        deadline = time.monotonic() + _KILLED_WITHIN_S
        while _WARNING not in self._received:
            time.sleep(0.1)
            if time.monotonic() > deadline:
                break
        requeue_this_job()
        while True:
            time.sleep(1)


def requeue_this_job() -> None:
    """Put this job back into the queue; of several ranks the first does."""
    while _is_first():
        try:
            requeue(os.environ["SLURM_JOB_ID"])
            return
        except SlurmError as error:
            # A controller that is away for a moment must not cost the job its place.
            _log.warning("%s; trying again", error)
            time.sleep(_REQUEUE_EVERY_S)


class SlurmJob:
    """A job of the grid as submitit pickles it for Slurm; ``token`` is its submission's."""

    def __init__(self, job: Job, context: Context, token: str, patience_s: float) -> None:
        self.job, self.context, self.token, self.patience_s = job, context, token, patience_s

    def __call__(self) -> None:
        """Run the job, or leave it to another submission of the same job that took its place."""
        _log_everything()
        if not _is_current(self.context, self.token):
            _log.warning("another submission took this one's place: nothing to do")
            return
        warned = Warned(self.patience_s)
        release, deaths = _Release(self.job, self.context), _Deaths(self.job, self.context)
        context = replace(self.context, world=submitted_world())
        try:
            run_job(self.job, context, release, stop=warned, rank_died=deaths)
        except Stopped as stopped:
            _log.info("%s: back to the queue", stopped)
            warned.leave()
        except RankDied as death:
            deaths(str(death))


class _Deaths:
    """Puts a job back into the queue when one of its ranks died, while it gets on between deaths.

    Every surviving rank does so, since the first may be the dead one; Slurm takes it once.
    """

    def __init__(self, job: Job, context: Context) -> None:
        self._job, self._context = job, context
        self._path = context.out / "jobs" / f"{job.name}.deaths.json"
        # Read before any rank can die: the survivors then write the same.
        try:
            self._before = read_json(self._path)
        except FileNotFoundError:
            self._before = {"count": 0, "fraction": 0.0}

    def __call__(self, message: str) -> NoReturn:
        progress = read_progress(self._job, self._context)
        fraction = progress["fraction"] if progress else 0.0
        got_on = fraction > self._before["fraction"]
        count = 1 if got_on else self._before["count"] + 1
        write_json(self._path, {"count": count, "fraction": fraction})
        if count <= _DEATHS_WITHOUT_PROGRESS:
            try:
                requeue(os.environ["SLURM_JOB_ID"])
            except SlurmError as error:
                _log.warning("not requeued by this rank: %s", error)
        leave(message)


class SlurmReport:
    """The job that makes the report, when all others have ended."""

    def __init__(self, context: Context, token: str, build: Callable[[Path], Path]) -> None:
        self.context, self.token, self.build = context, token, build

    def __call__(self) -> None:
        """Make the report from the files."""
        _log_everything()
        if _is_current(self.context, self.token):
            refresh_report(self.context.out, self.build)


def _is_first() -> bool:
    return os.environ.get("SLURM_PROCID", "0") == "0"


def _log_everything() -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
    )


def _is_current(context: Context, token: str) -> bool:
    """Return whether this job is the one on record.

    A launcher may die while it submits, and its orphaned sbatch arrive after another launcher has
    looked for it in vain.
    """
    submission = load_submission(submission_path(context.out, token))
    mine = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ["SLURM_JOB_ID"])
    return submission is not None and submission.slurm_id in (None, mine)


class _Release:
    """Lets jobs start as soon as the file is there that they start with.

    They were submitted to wait for the end of the job that writes it. One that is not released,
    because Slurm does not answer or it is not submitted yet, is tried again, and starts after that
    end at last.
    """

    def __init__(self, job: Job, context: Context) -> None:
        self._name, self._out = job.name, context.out
        self._released, self._next = set[str](), 0.0
        self._asked_for = job.lets_start and _is_first()

    def __call__(self) -> None:
        if not self._asked_for or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _RELEASE_EVERY_S
        waiting = {
            element: entry
            for submission in load_submissions(self._out)
            for element, entry in submission.elements()
            if entry.need == self._name and element not in self._released
        }
        ready = [e for e, entry in waiting.items() if (self._out / entry.starts_with).exists()]
        if not ready:
            return
        try:
            queued = queued_jobs()
            for element in sorted(ready):
                if element in queued and queued[element].reason.startswith("Dependency"):
                    clear_dependency(element)
                self._released.add(element)
        except SlurmError as error:
            _log.warning("jobs that could start wait on: %s", error)
