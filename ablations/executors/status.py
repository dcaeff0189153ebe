"""How far each job of a grid is: what its files say, and Slurm, where it was sent there."""

from collections import Counter

from ablations.engine.context import Context
from ablations.engine.progress import read_progress
from ablations.engine.state import _how_far, job_state
from ablations.executors.logs import last_lines
from ablations.executors.slurm.queue import QueuedJob, SlurmError
from ablations.pipeline.jobs import Job


def describe_status(jobs: list[Job], context: Context) -> str:
    """Return one line per job, and per cell for its snapshots: state, title, detail.

    States of a grid on Slurm are PLANNED, QUEUED, RUNNING, DONE, FAILED, DIVERGED, and LOST for a
    job that Slurm has not and that left neither a result nor a failure.
    """
    lines, queue = [], dict[str, tuple[str, QueuedJob | None]]()
    if (context.out / "slurm").exists():
        # Imported here: without Slurm nobody needs submitit for this.
        from ablations.executors.slurm.grid import queue_of

        try:
            queue = queue_of(context.out)
        except SlurmError as error:
            lines.append(f"Slurm does not answer; from files alone: {error}")
    snapshots: dict[str, Counter[str]] = {}
    for job in jobs:
        state, detail = _joined(job, context, queue.get(job.name))
        if job.kind == "snapshot":
            snapshots.setdefault(job.cell.name, Counter())[state] += 1
        else:
            lines.append(f"{state.upper():<9} {job.title}" + (f": {detail}" if detail else ""))
    for cell, counts in snapshots.items():
        # Without Slurm they are parts of the evaluation, and no jobs.
        if queue and set(counts) != {"done"}:
            counted = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
            lines.append(f"          snapshots of {cell}: {counted}")
    return "\n".join(lines)


def _joined(
    job: Job, context: Context, slurm: tuple[str, QueuedJob | None] | None
) -> tuple[str, str]:
    """Return the state and detail of a job from its files and what Slurm says of it."""
    state, detail = job_state(job, context)
    if slurm is None or state == "done":
        return state, detail
    from ablations.executors.slurm.grid import log_path, lost_message

    element, queued = slurm
    if queued is not None:
        if not queued.runs:
            stuck = " (it will not start by itself)" if queued.is_stuck else ""
            more = f"; {detail}" if detail else ""
            return "queued", f"job {element}, {queued.reason}{stuck}{more}"
        progress = read_progress(job, context)
        return "running", f"job {element}" + (f", {_how_far(progress)}" if progress else "")
    if state in ("failed", "diverged"):
        log = log_path(context.out, element)
        return state, f"{detail}; {last_lines(log)}" if log.exists() else detail
    return "lost", lost_message(context.out, element) + (f"; {detail}" if detail else "")
