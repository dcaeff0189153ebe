"""Run jobs in this process, or several at a time in processes of this machine."""

import logging
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import submitit

from ablations.engine.context import Context
from ablations.engine.failures import read_failure
from ablations.engine.interruption import Terminated, shielded_children
from ablations.engine.job import Job
from ablations.engine.run import run_job
from ablations.executors.inline import run_here
from ablations.executors.outcome import Outcome, Reporter, blocked, critical_path
from scorekit.runtime.distributed import World, current_world
from scorekit.runtime.interruption import Stopped

_log = logging.getLogger("scorekit")
_POLL_S = 0.5
_PORTS = range(20_000, 32_768)
_ENDS_WITHIN_S = 8.0  # a little more than a job takes to end itself


class SubmittedJob:
    """A job as submitit runs it in a process of its own."""

    def __init__(self, job: Job, context: Context) -> None:
        self.job, self.context = job, context

    def __call__(self) -> None:
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
        )
        terminated = Terminated()
        try:
            run_job(self.job, replace(self.context, world=submitted_world()), stop=terminated)
        except Stopped as stopped:
            _log.info("%s", stopped)
            raise SystemExit(128 + signal.SIGTERM) from None


def submitted_world() -> World:
    """Return the place of this process among the tasks of its submitit job."""
    job = submitit.JobEnvironment()
    if job.num_tasks == 1:
        return World()
    # As submitit does, by the job's id, but below the ports that Linux gives outgoing connections.
    os.environ.setdefault("MASTER_PORT", str(random.Random(job.job_id).choice(_PORTS)))
    # The devices a task sees are its cluster's affair, or this machine's other jobs'.
    submitit.helpers.TorchDistributedEnvironment().export(
        set_cuda_visible_devices=False, overwrite=True
    )
    if job.num_nodes == 1:
        # Its own name is not always one that this machine can resolve.
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    return current_world()


def run_submitted(
    jobs: Sequence[Job],
    context: Context,
    reporter: Reporter,
    outcome: Outcome,
    *,
    slots: Sequence[dict[str, Any]],
) -> None:
    """Run the jobs through submitit, at most ``len(slots)`` at a time, longest chains first.

    Each slot holds submitit parameters for a job that runs in it (a GPU of its own, for one). A job
    that is ``alone`` waits until every slot is free, and none starts beside it; unless it has
    several ranks it runs in this process.
    Whether a job succeeded is read from its files, not from its exit. On KeyboardInterrupt they are
    stopped.
    """
    executor = submitit.AutoExecutor(folder=context.out / "logs", cluster="local")
    length = critical_path(jobs)
    pending = sorted(jobs, key=lambda job: -length[job.name])
    running: dict[int, tuple[Job, submitit.Job[None]]] = {}
    try:
        while pending or running:
            for job in list(pending):
                if blocked(job, outcome, reporter):
                    pending.remove(job)
            free = [slot for slot in range(len(slots)) if slot not in running]
            beside = [job for job, _ in running.values()]
            for slot, job in zip(free, _startable(pending, beside, outcome), strict=False):
                pending.remove(job)
                if job.alone and slots[slot]["tasks_per_node"] == 1:
                    # Nothing else runs meanwhile: a process of its own would only cost its start.
                    run_here(job, context, reporter, outcome)
                    continue
                executor.update_parameters(**slots[slot])
                with shielded_children():
                    running[slot] = (job, executor.submit(SubmittedJob(job, context)))
                reporter.started(job)
            for slot, (job, submitted) in list(running.items()):
                if submitted.done():
                    del running[slot]
                    _settle(job, submitted, context, reporter, outcome)
            reporter.tick()
            if running:
                time.sleep(_POLL_S)
    except BaseException:
        _terminate([submitted for _, submitted in running.values()])
        raise


def _startable(pending: Sequence[Job], running: Sequence[Job], outcome: Outcome) -> list[Job]:
    """Return the jobs that may start now, beside those that run."""
    if any(job.alone for job in running):
        return []
    waiting = {job.name for job in [*pending, *running]}
    ready = [
        job
        for job in pending
        if outcome.done.issuperset(job.needs) and waiting.isdisjoint(job.after)
    ]
    together = [job for job in ready if not job.alone]
    if together or running:
        return together
    return ready[:1]


def _terminate(jobs: Sequence["submitit.Job[None]"]) -> None:
    """End local jobs, and wait until they have ended."""
    deadline = time.monotonic() + _ENDS_WITHIN_S
    while (left := [job for job in jobs if not job.done()]) and time.monotonic() < deadline:
        for job in left:
            # A local job's id is its controller's process, which passes this signal on, and which
            # is not reaped before done() says so. Told again, one that just began listens too.
            os.kill(int(job.job_id), signal.SIGTERM)
        time.sleep(_POLL_S)


def local_slots(n: int, *, gpus: Sequence[int] = (), ranks: int = 1) -> list[dict[str, Any]]:
    """Return submitit parameters of ``n`` places for local jobs of ``ranks`` processes.

    Where there are ``gpus``, each process has one of them.
    """
    month = 60 * 24 * 31  # submitit's default of 2 minutes would kill a training run
    slots = []
    for i in range(n):
        slot: dict[str, Any] = {
            "timeout_min": month,
            "stderr_to_stdout": True,
            "tasks_per_node": ranks,
        }
        if gpus:
            first = i % (len(gpus) // ranks) * ranks
            visible = tuple(gpus[first : first + ranks])
            slot |= {"gpus_per_node": ranks, "local_visible_gpus": visible}
        slots.append(slot)
    return slots


def _settle(
    job: Job,
    submitted: "submitit.Job[None]",
    context: Context,
    reporter: Reporter,
    outcome: Outcome,
) -> None:
    if job.is_done(context):
        outcome.done.add(job.name)
        reporter.finished(job)
        return
    failure = read_failure(context.out, job.name)
    if failure is None:
        log = submitted.paths.stdout
        message = f"its process died without a word; log: {os.path.relpath(log)}"
    else:
        message = failure["message"]
    outcome.failed[job.name] = message
    reporter.failed(job, message)
