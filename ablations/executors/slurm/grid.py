"""The grid on Slurm: arrays of jobs that wait for one another, sent once, watched, and left alone.

Like jobs with like needs are one array. A job that can begin before its needs have ended is let go
when the file that it begins with is there; the report follows all. Whether a job
succeeded is read from its files; what Slurm says only tells whether to go on waiting for them.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submitit.core.utils import JobPaths

from ablations.engine.context import Context
from ablations.engine.failures import read_failure
from ablations.engine.job import Job
from ablations.executors.leftovers import remove_leftovers
from ablations.executors.logs import last_lines
from ablations.executors.outcome import Outcome, Reporter, blocked_by
from ablations.executors.slurm.queue import (
    QueuedJob,
    SlurmError,
    cancel,
    ended_states,
    jobs_named,
    queued_jobs,
    require_slurm,
)
from ablations.executors.slurm.sender import Preview, Sender, logs_folder, pickle_path
from ablations.executors.slurm.settings import SlurmSettings
from ablations.executors.slurm.submissions import (
    REPORT,
    latest_ids,
    load_submissions,
    save_submission,
    submission_path,
    superseded,
)

_log = logging.getLogger("scorekit")
_FIRST_POLL_S, _SLOWEST_POLL_S = 0.5, 15.0
#: A result may be on a file system that shows it to this machine seconds after Slurm shows its end.
_RESULT_WITHIN_S = 10.0


@dataclass(frozen=True, kw_only=True)
class SlurmGrid:
    """Jobs of a grid and how Slurm runs them; ``known`` are all that could have been sent before.

    Methods raise SlurmError where Slurm does not answer or refuses.
    """

    name: str  # of the grid
    context: Context
    settings: Mapping[str, SlurmSettings]  # by kind of job
    jobs: Sequence[Job]
    known: Sequence[Job]
    build_report: Callable[[Path], Path]

    def submit(self) -> set[str]:
        """Send what is neither in the queue nor settled; return the names of all that is there."""
        require_slurm()
        live = self._recover()
        remove_leftovers(self.context.out, len(self.known), live=set(live.values()))
        names = {job.name for job in self.jobs}
        new = [job for job in self.jobs if job.name not in live]
        if not new and REPORT in live:
            return names & set(live)
        sender = Sender(self.name, self.context, self.settings, self.build_report)
        return names & set(self._send(sender, new, live))

    def preview(self) -> list[str]:
        """Return what :meth:`submit` would send, as lines; nothing is sent or written.

        Slurm is asked only where jobs of this folder were sent before.
        """
        out = self.context.out
        live = live_ids(out) if load_submissions(out) else {}
        sender = Preview(self.name, self.context, self.settings, self.build_report)
        new = [job for job in self.jobs if job.name not in live]
        if new or REPORT not in live:
            self._send(sender, new, live)
        return sender.lines

    def _send(self, sender: Sender, new: Sequence[Job], live: dict[str, str]) -> dict[str, str]:
        """Send jobs beside the live ones; return Slurm's ids of both by name."""
        arrays: dict[tuple[Any, ...], list[Job]] = {}
        for job in new:
            arrays.setdefault((job.kind, job.needs, job.alone), []).append(job)
        for jobs in arrays.values():
            needs = [f"afterok:{live[need]}" for need in jobs[0].needs if need in live]
            after = dict.fromkeys(name for job in jobs for name in job.after if name in live)
            live |= sender.send(jobs, [*needs, *_after_any(live[name] for name in after)])
        if REPORT in live:
            sender.cancel(live.pop(REPORT))
        try:
            sender.send_report(_after_any(live.values()))
        except SlurmError as error:
            _log.warning("the launcher will make the report, and no job: %s", error)
        return live

    def _recover(self) -> dict[str, str]:
        """Find out whether what a dead launcher was sending arrived; return the live jobs' ids."""
        out = self.context.out
        by_name = {job.name: job for job in self.known}
        for submission in load_submissions(out):
            if submission.slurm_id is None:
                if found := jobs_named(submission.name):
                    arrived = replace(submission, slurm_id=min(found, key=int))
                    save_submission(arrived, out)
                else:
                    submission_path(out, submission.token).unlink(missing_ok=True)
        submissions, queued = load_submissions(out), queued_jobs()
        for submission in superseded(submissions):
            if queued.keys().isdisjoint(element for element, _ in submission.elements()):
                submission_path(out, submission.token).unlink(missing_ok=True)
        for submission in submissions:
            for element, entry in submission.elements():
                # submitit puts the pickles where jobs look for them after sbatch has answered.
                path = pickle_path(out, element)
                if element in queued and entry.name in by_name and not path.exists():
                    sender = Sender(self.name, self.context, self.settings, self.build_report)
                    sender.pickle(by_name[entry.name], submission.token, path)
        return {name: id for name, id in latest_ids(submissions).items() if id in queued}

    def watch(self, names: set[str], reporter: Reporter, outcome: Outcome) -> None:
        """Follow the jobs until all have ended; each is done, or failed with a reason."""
        out = self.context.out
        waiting = {job.name: job for job in self.jobs if job.name in names}
        started: set[str] = set()
        absent: dict[str, float] = {}
        warned: set[str] = set()
        pause = _FIRST_POLL_S
        while True:
            ids, changed = latest_ids(load_submissions(out)), False
            try:
                queued = queued_jobs()
            except SlurmError as error:
                # The jobs need no launcher, nor a controller while they run.
                _log.warning("%s; watching on", error)
                time.sleep(_SLOWEST_POLL_S)
                continue
            _warn_of_stuck({ids[name] for name in waiting}, queued, warned)
            for name, job in list(waiting.items()):
                state = queued.get(ids[name])
                if state is not None:
                    absent.pop(name, None)
                    if state.runs and name not in started:
                        started.add(name)
                        reporter.started(job)
                        changed = True
                    continue
                since = absent.setdefault(name, time.monotonic())
                done, failure = job.is_done(self.context), read_failure(out, name)
                recent = time.monotonic() - since < _RESULT_WITHIN_S
                if not done and failure is None and recent:
                    changed = True
                    continue
                del waiting[name]
                changed = True
                if done:
                    outcome.done.add(name)
                    reporter.finished(job)
                else:
                    message = failure["message"] if failure else lost_message(out, ids[name])
                    outcome.failed[name] = blocked_by(job, outcome) or message
                    reporter.failed(job, outcome.failed[name])
            reporter.tick()
            if not waiting and ids.get(REPORT) not in queued:
                return
            pause = _FIRST_POLL_S if changed else min(1.3 * pause, _SLOWEST_POLL_S)
            time.sleep(pause)


def live_ids(out: Path) -> dict[str, str]:
    """Return Slurm's ids of the jobs of this folder that wait or run, by name."""
    queued = queued_jobs()
    return {n: i for n, i in latest_ids(load_submissions(out)).items() if i in queued}


def cancel_all(out: Path) -> int:
    """Cancel every waiting and running job of an output folder; return how many there were."""
    require_slurm()
    ids = set(live_ids(out).values())
    for submission in load_submissions(out):
        if submission.slurm_id is None:  # its launcher died before it knew
            arrays = jobs_named(submission.name)
            ids |= {job for job in queued_jobs() if job.split("_")[0] in arrays}
    cancel(sorted(ids))
    return len(ids)


def queue_of(out: Path) -> dict[str, tuple[str, QueuedJob | None]]:
    """Return each submitted job's id in Slurm, and what the queue says of it, by name."""
    ids = latest_ids(load_submissions(out))
    if not ids:
        return {}
    queued = queued_jobs()
    return {name: (element, queued.get(element)) for name, element in ids.items()}


def lost_message(out: Path, element: str) -> str:
    """Say how a job that left neither result nor failure ended, as far as Slurm knows."""
    try:
        state = ended_states([element]).get(element, "not in Slurm's accounting")
    except SlurmError as error:
        state = f"its end is not known ({error})"
    message = f"Slurm job {element} ended without a word: {state}"
    log = log_path(out, element)
    return f"{message}; {os.path.relpath(log)}: {last_lines(log)}" if log.exists() else message


def log_path(out: Path, element: str) -> Path:
    """Return the log of a job, of its first task."""
    return JobPaths(logs_folder(out), job_id=element).stdout


def _warn_of_stuck(ids: set[str], queued: dict[str, QueuedJob], warned: set[str]) -> None:
    """Say once of each reason which jobs will not start until somebody does something."""
    for reason in sorted({queued[i].reason for i in ids & queued.keys() if queued[i].is_stuck}):
        if reason not in warned:
            warned.add(reason)
            some = sorted(i for i in ids & queued.keys() if queued[i].reason == reason)
            _log.warning(
                "%d job(s), such as %s, will not start by themselves: %s; change that (scontrol "
                "update or release), or --cancel and launch again with other --slurm settings",
                len(some),
                some[0],
                reason,
            )


def _after_any(ids: Iterable[str]) -> list[str]:
    """Return the dependency on whole arrays: one clause for each, however many jobs it has."""
    arrays = sorted({element.split("_")[0] for element in ids}, key=int)
    return [f"afterany:{':'.join(arrays)}"] if arrays else []
