"""Whether the disk has room for what is still to be written."""

import shutil
from collections.abc import Iterable

from ablations.engine.context import Context
from ablations.engine.job import Job


def check_disk(jobs: Iterable[Job], context: Context) -> None:
    """Raise ValueError where the disk is too full for what is still to be written."""
    needed = sum(job.disk_bytes for job in jobs if not job.is_done(context))
    folder = context.out
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"--out {context.out}: {free / 2**20:.0f} MiB are free, about {needed / 2**20:.0f} MiB "
            "are needed; free some space or choose another --out"
        )
