"""Whether the disk has room for what is still to be written."""

import shutil

from ablations.engine.context import Context
from ablations.pipeline.cell import Cell
from ablations.pipeline.estimate import disk_bytes
from ablations.pipeline.jobs import Job, job_is_done


def check_disk(cells: list[Cell], jobs: list[Job], context: Context) -> None:
    """Raise ValueError where the disk is too full for what is still to be written."""
    pending = [job for job in jobs if not job_is_done(job, context)]
    needed = disk_bytes(cells, pending)
    folder = context.out
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"--out {context.out}: {free / 2**20:.0f} MiB are free, about {needed / 2**20:.0f} MiB "
            "are needed; free some space or choose another --out"
        )
