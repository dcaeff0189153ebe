"""A job run, and its failure put on record."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

import torch

from ablations.engine.context import Context
from ablations.engine.failures import clear_failure, record_failure
from ablations.engine.job import Job, Work
from ablations.engine.plugins import load_plugins
from ablations.engine.progress import Progress, progress_path
from scorekit.runtime.distributed import RankDied, World, leave, process_group
from scorekit.runtime.interruption import Diverged, Stopped, never


def run_job(
    job: Job,
    context: Context,
    on_update: Callable[[], None] = lambda: None,
    *,
    stop: Callable[[], bool] = never,
    rank_died: Callable[[str], NoReturn] = leave,
) -> None:
    """Run a job; a failure is recorded beside the job's progress, then raised.

    Where ``stop`` says True, Stopped is raised at the job's next opportunity, which is no failure:
    run again, the job goes on from its files.

    Where ``context.world`` has several ranks, each calls this: they run together the jobs that say
    so, and rank 0 the others. Where one dies, each of the others notes it and calls
    ``rank_died`` in a thread of its own, which ends its process.
    """
    torch.set_num_threads(context.threads)
    world = context.world
    if not job.together:
        if not world.is_main:
            return
        context = replace(context, world=World())
    if world.is_main:
        clear_failure(context.out, job.name)
    with _recording(job, context):
        load_plugins(context.plugins)
    progress = Progress(progress_path(context.out, job.name), on_update, write=world.is_main)

    def lost(message: str) -> None:
        try:
            record_failure(context.out, job.name, RankDied(message))
        finally:
            rank_died(message)

    group = process_group(context.world, context.device, lost=lost, together=(Stopped, Diverged))
    with _recording(job, context), group, _recording(job, context):
        job.run(Work(context=context, progress=progress, stop=stop))


@contextmanager
def _recording(job: Job, context: Context) -> Iterator[None]:
    """Record what ends a job; of what ends all of its ranks alike, rank 0 does so.

    Within the group of the ranks a rank tells of its end before the others can notice it, and
    outside of it why the ranks did not meet.
    """
    try:
        yield
    except Stopped:
        raise
    except Exception as error:
        if context.world.is_main or not isinstance(error, Diverged):
            record_failure(context.out, job.name, error)
        raise
