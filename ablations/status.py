"""How far each job of a grid is: what its files say, and Slurm, where it was sent there."""

import time
from collections import Counter
from typing import Any

from ablations.failures import read_failure
from ablations.jobs import Context, Job, job_is_done, progress_path
from ablations.logs import last_lines
from ablations.slurm_queue import QueuedJob, SlurmError
from scorekit.files import CorruptFile, read_json

_STALE_S = 120


def job_state(job: Job, context: Context) -> tuple[str, str]:
    """Return (done | failed | diverged | running | planned, detail) of a job, from its files.

    The images of its dumps, which nothing is computed from, are not looked at.
    """
    if job_is_done(job, context, dumps=False):
        return "done", ""
    if (failure := read_failure(context.out, job.name)) is not None:
        if failure["kind"] == "lost":
            return "planned", f"{failure['message']}; will go on from its files"
        return str(failure["kind"]), str(failure["message"])
    if (progress := read_progress(job, context)) is not None:
        if time.time() - progress["updated"] < _STALE_S:
            return "running", _how_far(progress)
        return "planned", f"stopped at {100 * progress['fraction']:.0f} %; will go on from there"
    return "planned", ""


def read_progress(job: Job, context: Context) -> dict[str, Any] | None:
    """Return a job's last progress (fraction, text, updated, began, began_fraction), or None.

    A damaged file is none.
    """
    try:
        record = read_json(progress_path(context.out, job.name))
    except (FileNotFoundError, CorruptFile):
        return None
    numbers = ("fraction", "updated", "began", "began_fraction")
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        return None
    return record if all(isinstance(record.get(n), int | float) for n in numbers) else None


def describe_status(jobs: list[Job], context: Context) -> str:
    """Return one line per job, and per cell for its snapshots: state, title, detail.

    States of a grid on Slurm are PLANNED, QUEUED, RUNNING, DONE, FAILED, DIVERGED, and LOST for a
    job that Slurm has not and that left neither a result nor a failure.
    """
    lines, queue = [], dict[str, tuple[str, QueuedJob | None]]()
    if (context.out / "slurm").exists():
        # Imported here: without Slurm nobody needs submitit for this.
        from ablations.slurm import queue_of

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
    from ablations.slurm import log_path, lost_message

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


def _how_far(progress: dict[str, Any]) -> str:
    fraction = progress["fraction"]
    text = f"{100 * fraction:.0f} %, {progress['text']}"
    gained = fraction - progress["began_fraction"]
    if gained <= 0:
        return text
    left_s = (progress["updated"] - progress["began"]) * (1 - fraction) / gained
    return (
        f"{text}, about {left_s / 60:.0f} min left"
        if left_s >= 90
        else (f"{text}, about {left_s:.0f} s left")
    )
