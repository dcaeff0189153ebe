"""How far each job of a grid is: what its files say, and Slurm, where it was sent there."""

from collections import Counter
from collections.abc import Sequence

from ablations.engine.context import Context
from ablations.engine.job import Job
from ablations.engine.progress import read_progress
from ablations.engine.state import how_far, job_state
from ablations.executors.logs import last_lines
from ablations.executors.slurm.queue import QueuedJob, SlurmError


def describe_status(jobs: Sequence[Job], context: Context, *, thorough: bool = False) -> str:
    """Return one line per job, and one for the parts of each that a queue has: state, detail.

    States of a grid on Slurm are PLANNED, QUEUED, RUNNING, DONE, FAILED, DIVERGED, and LOST for a
    job that Slurm has not and that left neither a result nor a failure. ``thorough`` looks at what
    nothing is computed from, too.
    """
    lines, queue = [], dict[str, tuple[str, QueuedJob | None]]()
    if (context.out / "slurm").exists():
        # Imported here: without Slurm nobody needs submitit for this.
        from ablations.executors.slurm.grid import queue_of

        try:
            queue = queue_of(context.out)
        except SlurmError as error:
            lines.append(f"Slurm does not answer; from files alone: {error}")
    titles = {job.name: job.title for job in jobs}
    parts: dict[str, Counter[str]] = {}
    for job in jobs:
        if job.part_of is None:
            state, detail = _joined(job, context, queue.get(job.name), thorough)
            lines.append(f"{state.upper():<9} {job.title}" + (f": {detail}" if detail else ""))
        elif queue:  # without one they are no jobs
            state, _ = _joined(job, context, queue.get(job.name), thorough)
            parts.setdefault(job.part_of, Counter())[state] += 1
    for whole, counts in parts.items():
        if set(counts) != {"done"}:
            counted = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
            lines.append(f"          parts of {titles[whole]}: {counted}")
    return "\n".join(lines)


def _joined(
    job: Job, context: Context, slurm: tuple[str, QueuedJob | None] | None, thorough: bool
) -> tuple[str, str]:
    """Return the state and detail of a job from its files and what Slurm says of it."""
    state, detail = job_state(job, context, thorough=thorough)
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
        return "running", f"job {element}" + (f", {how_far(progress)}" if progress else "")
    if state in ("failed", "diverged"):
        log = log_path(context.out, element)
        return state, f"{detail}; {last_lines(log)}" if log.exists() else detail
    return "lost", lost_message(context.out, element) + (f"; {detail}" if detail else "")
