"""How arrays of jobs go to Slurm through submitit, on record before and after, and a look at them.

Beside what is sent, a preview of it: the options that sbatch would be given.
"""

import contextlib
import io
import logging
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError, JobPaths
from submitit.slurm.slurm import _make_sbatch_string

from ablations.engine.code_snapshot import code_folder, snapshot_code
from ablations.engine.context import Context
from ablations.engine.job import Job
from ablations.executors.slurm.job import SlurmJob, SlurmReport, patient_python
from ablations.executors.slurm.queue import SlurmError, cancel, clean_environment, largest_array
from ablations.executors.slurm.settings import SlurmSettings
from ablations.executors.slurm.submissions import (
    REPORT,
    Entry,
    Submission,
    latest_ids,
    load_submissions,
    save_submission,
    submission_path,
)

_log = logging.getLogger("scorekit")


def logs_folder(out: Path) -> Path:
    """Return the folder of the jobs' logs and pickles."""
    return out / "logs"


def pickle_path(out: Path, element: str) -> Path:
    """Return the file where the job of an id of Slurm's finds what it is to do."""
    return JobPaths(logs_folder(out), job_id=element).submitted_pickle


class Sender:
    """Sends arrays of a grid, each kind of job with settings of its own.

    Methods raise SlurmError where Slurm does not answer or refuses.
    """

    def __init__(
        self,
        grid: str,
        context: Context,
        settings: Mapping[str, SlurmSettings],
        build_report: Callable[[Path], Path],
    ) -> None:
        self._grid, self._context, self._settings = grid, context, settings
        self._build_report = build_report
        self._prepare()
        # Of two hosts' clocks the later counts: which submission is the latest must not depend.
        self._newest = max((s.created for s in load_submissions(context.out)), default=0.0)

    def _prepare(self) -> None:
        self._code, self._largest = snapshot_code(self._context.out), largest_array()

    def send(self, jobs: Sequence[Job], after: Sequence[str]) -> dict[str, str]:
        """Submit like jobs as arrays that wait for ``after``; return Slurm's ids by name."""
        sent: dict[str, str] = {}
        for first in range(0, len(jobs), self._largest):
            part = jobs[first : first + self._largest]
            entries = tuple(Entry.of(job, self._context) for job in part)
            submission = self._submission(entries, part[0].kind, after)
            calls = [self._callable_of(job, submission.token) for job in part]
            sent |= latest_ids([self._send(submission, calls, self._parameters(part[0]))])
        return sent

    def send_report(self, after: Sequence[str]) -> None:
        """Submit the job of the report."""
        submission = self._submission((Entry(REPORT),), REPORT, after)
        report = SlurmReport(self._context, submission.token, self._build_report)
        self._send(submission, [report], self._parameters())

    def cancel(self, element: str) -> None:
        """Cancel a job that another will replace."""
        cancel([element])

    def pickle(self, job: Job, token: str, path: Path) -> None:
        """Write what a job loads at its start, where submitit would have."""
        delayed = DelayedSubmission(self._callable_of(job, token))
        delayed.set_timeout(self._settings[job.resources].time, 0)
        # A job may be looking for it.
        temporary = path.with_name(f".{path.name}.tmp")
        delayed.dump(temporary)
        os.replace(temporary, path)

    def _submission(
        self, entries: tuple[Entry, ...], kind: str, after: Sequence[str]
    ) -> Submission:
        dependency = ",".join(after)
        return Submission.named(self._grid, kind, entries=entries, dependency=dependency)

    def _callable_of(self, job: Job, token: str) -> SlurmJob:
        settings = self._settings[job.resources]
        context = replace(self._context, threads=settings.threads_of(self._context.threads))
        return SlurmJob(job, context, token, settings.warning_s / 2)

    def _parameters(self, job: Job | None = None) -> dict[str, Any]:
        """Return submitit's parameters of jobs like this one, or of the report."""
        if job is None:
            return self._settings[REPORT].parameters(threads=1, cuda=False, code=self._code)
        settings = self._settings[job.resources]
        parameters = settings.parameters(
            threads=settings.threads_of(self._context.threads),
            cuda=self._context.device != "cpu",
            code=self._code,
        )
        return parameters | {"slurm_exclusive": True} if job.alone else parameters

    def _send(
        self,
        submission: Submission,
        calls: Sequence[Callable[[], None]],
        parameters: Mapping[str, Any],
    ) -> Submission:
        out = self._context.out
        self._newest = max(submission.created, self._newest + 1e-3)
        submission = replace(submission, created=self._newest)
        given = [name.removeprefix("slurm_") for name in parameters] + list(
            parameters["slurm_additional_parameters"]
        )
        # A new one each time: it keeps whatever the last submission had and this one has not.
        executor = submitit.AutoExecutor(
            folder=logs_folder(out), cluster="slurm", slurm_python=patient_python()
        )
        executor.update_parameters(
            **parameters,
            name=submission.name,
            slurm_dependency=submission.dependency or None,
        )
        save_submission(submission, out)
        said = io.StringIO()  # what sbatch says, which submitit passes on as it comes
        try:
            with clean_environment(given), contextlib.redirect_stderr(said), executor.batch():
                jobs = [executor.submit(call) for call in calls]
            array = jobs[0].job_id.split("_")[0]
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            submission_path(out, submission.token).unlink(missing_ok=True)
            lines = (said.getvalue() or str(error)).splitlines()
            reasons = dict.fromkeys(line.split("error: ")[-1].strip() for line in lines)
            raise SlurmError(f"sbatch refused: {'; '.join(filter(None, reasons))}") from error
        if warning := said.getvalue().strip():
            _log.warning("%s", warning)
        submission = replace(submission, slurm_id=array)
        save_submission(submission, out)
        return submission


class Preview(Sender):
    """Sends nothing and writes nothing: the options of each array become ``lines``.

    Arrays are numbered as Slurm would number them on an empty cluster: from 1, in their order.
    """

    def _prepare(self) -> None:
        self.lines: list[str] = []
        self._sent = 0
        self._code = code_folder(self._context.out)
        try:
            self._largest = largest_array()
        except SlurmError as error:
            self._largest = 2**31
            self.lines.append(f"{error}: arrays are shown as if any length were allowed")

    def cancel(self, element: str) -> None:
        """Say which job would make room for another."""
        self.lines.append(f"scancel {element}, the waiting report")

    def _send(
        self,
        submission: Submission,
        calls: Sequence[Callable[[], None]],
        parameters: Mapping[str, Any],
    ) -> Submission:
        script = _make_sbatch_string(
            "",
            logs_folder(self._context.out),
            job_name=submission.name,
            dependency=submission.dependency or None,
            map_count=len(calls) if len(calls) > 1 else None,
            **{name.removeprefix("slurm_"): value for name, value in parameters.items()},
        )
        begin = "#SBATCH "
        options = [line.removeprefix(begin) for line in script.splitlines() if begin in line]
        self._sent += 1
        kind = submission.title.rpartition("-")[2]
        self.lines.append(f"{self._sent}: {len(calls)} job(s), {kind}: sbatch {' '.join(options)}")
        return replace(submission, slurm_id=str(self._sent))
