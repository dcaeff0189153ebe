"""Where a job stands, as its files tell."""

import time
from typing import Any

from ablations.engine.context import Context
from ablations.engine.failures import read_failure
from ablations.engine.job import Job
from ablations.engine.progress import read_progress

_STALE_S = 120


def job_state(job: Job, context: Context, *, thorough: bool = False) -> tuple[str, str]:
    """Return (done | failed | diverged | running | planned, detail) of a job, from its files.

    Unless ``thorough``, what nothing is computed from is not looked at.
    """
    if job.is_done(context, thorough=thorough):
        return "done", ""
    if (failure := read_failure(context.out, job.name)) is not None:
        if failure["kind"] == "lost":
            return "planned", f"{failure['message']}; will go on from its files"
        return str(failure["kind"]), str(failure["message"])
    if (progress := read_progress(job, context)) is not None:
        if time.time() - progress["updated"] < _STALE_S:
            return "running", how_far(progress)
        return "planned", f"stopped at {100 * progress['fraction']:.0f} %; will go on from there"
    return "planned", ""


def how_far(progress: dict[str, Any]) -> str:
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
