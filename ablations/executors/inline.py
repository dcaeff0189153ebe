"""Jobs one after another in this process."""

import logging
from collections.abc import Sequence

from ablations.engine.context import Context
from ablations.engine.job import Job
from ablations.engine.run import run_job
from ablations.executors.outcome import Outcome, Reporter, blocked

_log = logging.getLogger("scorekit")


def run_inline(jobs: Sequence[Job], context: Context, reporter: Reporter, outcome: Outcome) -> None:
    """Run the jobs one after another in this process."""
    for job in jobs:
        if not blocked(job, outcome, reporter):
            run_here(job, context, reporter, outcome)


def run_here(job: Job, context: Context, reporter: Reporter, outcome: Outcome) -> None:
    """Run a job in this process; whatever ends it is told and noted, and the others go on."""
    reporter.started(job)
    try:
        run_job(job, context, reporter.tick)
    except Exception as error:
        # run_job has put it on record with its traceback.
        _log.debug("job %s failed", job.name, exc_info=True)
        outcome.failed[job.name] = str(error) or type(error).__name__
        reporter.failed(job, outcome.failed[job.name])
    else:
        outcome.done.add(job.name)
        reporter.finished(job)
