"""What Slurm says of jobs, and what it is told: its command-line clients, and nothing else."""

import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_log = logging.getLogger("scorekit")
#: Beginnings of the names of variables that Slurm's clients read, or a job's steps.
_CLIENTS = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_")
#: How the clients find and convince their cluster.
_CONNECTION = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
#: What a user sets once to be charged and queued rightly.
_DEFAULTS = {"SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_RESERVATION"}
_RANGE = re.compile(r"(\d+)(?:-(\d+))?(?::(\d+))?")
#: Reasons of squeue's manual that neither other jobs' ends nor repairs of nodes remove.
_NEVER_ENDS = re.compile(
    r"JobHeld|JobHoldMaxRequeue|launch.failed.requeued.held|BadConstraints|MaxWallDuration|PerJob|"
    r"Partition(TimeLimit|NodeLimit|Config)|Invalid(Account|QOS)|(Account|QOS)NotAllowed"
)
_TIMEOUT_S = 60
_RETRY_S = 2.0
#: What clients say of a controller that is away or busy, which passes.
_PASSING = ("Unable to contact", "onnection", "timed out", "Zero Bytes", "ommunication")


class SlurmError(ValueError):
    """Slurm is not there, does not answer or refuses; the message is its own."""


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits or runs: its state as Slurm names it, and why it waits."""

    state: str
    reason: str

    @property
    def runs(self) -> bool:
        """Whether it has begun (and may be in the middle of being ended or requeued)."""
        return self.state not in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")

    @property
    def is_stuck(self) -> bool:
        """Whether it waits for what only a person changes: a limit, a hold, a wrong account."""
        return not self.runs and _NEVER_ENDS.search(self.reason) is not None


#: States of jobs that squeue still lists although they will not run again.
_OVER = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "REVOKED", "TIMEOUT"),
}


def require_slurm() -> None:
    """Raise SlurmError where this machine has no clients of Slurm."""
    if missing := [name for name in ("sbatch", "squeue", "srun") if shutil.which(name) is None]:
        raise SlurmError(
            f"--executor slurm: {missing[0]} is not on the PATH of this machine; start the "
            "launcher where jobs are submitted"
        )


def queued_jobs() -> dict[str, QueuedJob]:
    """Return this user's waiting and running jobs by id: "17", or "17_3" in an array."""
    text = _ask("squeue", "--noheader", "--me", "--all", "--array", "--format=%F|%K|%T|%r")
    found = {}
    for line in text.splitlines():
        job, index, state, reason = line.strip().split("|", 3)
        if state not in _OVER:
            found[_element(job, index)] = QueuedJob(state, reason)
    return found


def jobs_named(name: str) -> set[str]:
    """Return the ids (of whole arrays) of all jobs called so.

    Ended ones are included where the cluster keeps accounts; else they are known by their files.
    """
    text = _ask("squeue", "--noheader", "--me", "--all", f"--name={name}", "--format=%F")
    found = set(text.split())
    try:
        text = _account(f"--name={name}", "--starttime=now-60days", "--format=JobID")
    except SlurmError as error:
        _log.info("ended jobs are not known: %s", error)
        return found
    return found | {line.split("_")[0] for line in text.split()}


def ended_states(ids: Iterable[str]) -> dict[str, str]:
    """Return how jobs ended, by id, as Slurm's accounting has it: "OUT_OF_MEMORY", "CANCELLED".

    Raises SlurmError where it does not answer, or the cluster has none.
    """
    arrays = sorted({job.split("_")[0] for job in ids})
    if not arrays:
        return {}
    text = _account(f"--jobs={','.join(arrays)}", "--format=JobID,State")
    rows = (line.split("|", 1) for line in text.splitlines())
    return {job: state for shown, state in rows for job in _elements(shown)}


def largest_array() -> int:
    """Return how many jobs an array may have here: one, where the cluster does not say."""
    match = re.search(
        r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE
    )
    # It is one more than the largest index; 0 is a cluster that takes none.
    return max(1, int(match[1])) if match else 1


def cancel(ids: Sequence[str]) -> None:
    """Cancel waiting and running jobs."""
    for first in range(0, len(ids), 500):  # a command line has a length
        _ask("scancel", *ids[first : first + 500])


def clear_dependency(job: str) -> None:
    """Let a waiting job start; SlurmError where it does not wait any more."""
    _ask("scontrol", "update", f"JobId={job}", "Dependency=")


def requeue(job: str) -> None:
    """Put the running job back into the queue, which ends its processes."""
    _ask("scontrol", "requeue", job)


def _elements(shown: str) -> list[str]:
    """Return the ids that accounting shows together: "17", "17_3", "17_[0,2-5,8-20:4%2]"."""
    array, bracket, ranges = shown.partition("_[")
    if not bracket:
        return [shown]
    found = []
    for part in ranges.rstrip("]").split("%")[0].split(","):
        if match := _RANGE.fullmatch(part):  # a list that is too long ends in dots
            first, last, step = match.groups()
            indices = range(int(first), int(last or first) + 1, int(step or 1))
            found += [f"{array}_{index}" for index in indices]
    return found


def _element(job: str, index: str) -> str:
    return job if index == "N/A" else f"{job}_{index}"


def _account(*options: str) -> str:
    """Ask the accounting, once: it only adds to what files and queue say, and may not be there."""
    return _ask("sacct", "--noheader", "--allocations", "--parsable2", *options, attempts=1)


def client_environment() -> dict[str, str]:
    """Return this process's variables without those that change what Slurm's clients do.

    They are the formats and filters that a user has for typing, and what an allocation tells its
    own steps. Outside of an allocation a user's choice of whom to charge is kept.
    """
    kept = set(_CONNECTION)
    if "SLURM_JOB_ID" not in os.environ:
        kept |= _DEFAULTS
    return {
        name: value
        for name, value in os.environ.items()
        if name in kept or not name.startswith(_CLIENTS)
    }


@contextmanager
def clean_environment(given: Iterable[str] = ()) -> Iterator[None]:
    """Let this process have :func:`client_environment` meanwhile, and what it starts.

    ``given`` are options that sbatch gets by themselves, over which variables would win.
    """
    before = dict(os.environ)
    kept = client_environment().keys() - {f"SBATCH_{option.upper()}" for option in given}
    for name in before.keys() - kept:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


def _ask(*command: str, attempts: int = 4) -> str:
    """Run a client, which is asked again for a while where the controller does not answer."""
    for attempt in range(attempts):
        if attempt:
            time.sleep(_RETRY_S * 2**attempt)
        try:
            run = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                env=client_environment(),
            )
        except FileNotFoundError as error:
            raise SlurmError(f"{command[0]} is not on the PATH of this machine") from error
        except subprocess.TimeoutExpired:
            message = f"it did not answer within {_TIMEOUT_S} s"
            continue
        if run.returncode == 0:
            return run.stdout
        message = " ".join(run.stderr.split()) or f"exit code {run.returncode}"
        if not any(sign in message for sign in _PASSING):
            break
    raise SlurmError(f"{command[0]}: {message}")
