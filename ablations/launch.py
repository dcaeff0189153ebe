"""``python -m ablations.launch``: turn a named grid into jobs, run them, and write the report."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ablations.command_line import (
    Plan,
    given_plugins,
    load_units,
    make_plan,
    output_folder,
    parse_arguments,
)
from ablations.engine.console import make_reporter
from ablations.engine.context import Context
from ablations.engine.disk import check_disk
from ablations.engine.failures import clear_failure, read_failure
from ablations.engine.interruption import interrupt_on_sigterm
from ablations.engine.job import Job, without_parts
from ablations.engine.lock import launcher_lock
from ablations.engine.plugins import load_plugins
from ablations.engine.provenance import describe_outdated
from ablations.engine.refresh import mark_stale, refresh_report
from ablations.engine.settings import describe_settings
from ablations.engine.surroundings import use_any_terminal
from ablations.executors.inline import run_inline
from ablations.executors.leftovers import remove_leftovers
from ablations.executors.local import local_slots, run_submitted
from ablations.executors.outcome import Outcome, blocked_by
from ablations.executors.status import describe_status
from ablations.studies import study_of
from scorekit.files import CorruptFile

if TYPE_CHECKING:
    from ablations.executors.slurm.grid import SlurmGrid


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 (all done), 1 (some jobs failed), 2 (bad input), 130."""
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        if args.settings:
            study = study_of(args.grid, output_folder(args))
            load_plugins(given_plugins(args, study))
            print("\n".join(describe_settings(study.settings, study.budgets)))
            return 0
        if args.status or args.verify:
            study, units, context = load_units(args)
            jobs = study.jobs(units)
            damaged = _verify(jobs, context) if args.verify else 0
            print(describe_status(jobs, context, thorough=args.verify))
            return 1 if damaged else 0
        if args.cancel:
            from ablations.executors.slurm.grid import cancel_all

            print(f"cancelled {cancel_all(output_folder(args))} jobs in Slurm")
            return 0
        plan = make_plan(args)
        pending = [job for job in plan.jobs if not job.is_done(plan.context, thorough=False)]
        warnings = plan.study.check(pending, plan.context, args.dry_run)
        if args.dry_run:
            described = plan.study.describe(plan.resolved, plan.jobs)
            print("\n".join([*plan.notes, *warnings, *described]))
            if plan.executor == "slurm":
                lines = _preview_slurm(plan, retry_failed=args.retry_failed)
                print("\n".join(["", "to Slurm, in this order", *lines]))
            return 0
        check_disk(plan.jobs, plan.context)
        plan.context.out.mkdir(parents=True, exist_ok=True)
        with launcher_lock(plan.context.out):
            if plan.study.file.save(plan.manifest, plan.context.out):
                mark_stale(plan.context.out)
            # Slurm must first be asked whose files jobs in its queue will need.
            if plan.executor != "slurm" and not (plan.context.out / "slurm").exists():
                n_jobs = len(without_parts(plan.study.jobs(plan.manifest.units)))
                remove_leftovers(plan.context.out, n_jobs)
            return _run(plan, retry_failed=args.retry_failed)
    except (ValueError, OSError, CorruptFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues where it stopped", file=sys.stderr)
        return 130


def _verify(jobs: Sequence[Job], context: Context) -> int:
    """Read every byte of the results; say and return how many stages and dumps are damaged."""
    intact, damaged = context.store.read_all()
    # What is no stage is only looked at by the jobs themselves.
    half = [job for job in jobs if job.is_done(context, thorough=False)]
    damaged += sum(not job.is_done(context) for job in half)
    outcome = f"{damaged} damaged; the same command without --verify makes them again"
    print(f"{intact} stages read, every byte; {outcome if damaged else 'none damaged'}", flush=True)
    return damaged


def _run(plan: Plan, *, retry_failed: bool) -> int:
    context, study, manifest = plan.context, plan.study, plan.manifest
    outcome, todo = _settled(plan, retry_failed=retry_failed)
    for job in todo:
        clear_failure(context.out, job.name)
    description = study.budgets[manifest.budget].description
    print(f"budget: {study.budget_label(manifest)} — {description}", flush=True)
    print(
        f"grid {manifest.grid}: {len(plan.units)} {study.units}, {len(plan.jobs)} jobs, "
        f"{len(plan.jobs) - len(todo)} of them settled; {plan.executor} executor on "
        f"{context.device}, {plan.workers if plan.executor != 'inline' else 1} at a time; "
        f"results in {os.path.relpath(context.out)}",
        flush=True,
    )
    for line in (*plan.notes, *study.warnings(plan.units)):
        print(line)
    if context.store.outdated:
        what = "are made again" if context.rerun else "are kept (--rerun changed makes them again)"
        print(f"warning: {describe_outdated(context.store.outdated)}: they {what}")
        mark_stale(context.out)  # the report is to say so
    for job in plan.jobs:
        if job.name in outcome.failed:
            print(f"failed before: {job.title}: {outcome.failed[job.name]}")
    if todo:
        mark_stale(context.out)
        if plan.executor == "slurm":
            _run_on_slurm(plan, todo, outcome)
        else:
            with make_reporter(todo, context) as reporter:
                if plan.executor == "inline":
                    run_inline(todo, context, reporter, outcome)
                else:
                    run_submitted(todo, context, reporter, outcome, slots=_slots(plan))
    else:
        print("nothing to do: every job is settled")
    for line in study.summary(plan.units, context):
        print(line)
    page = refresh_report(context.out, study.report)
    print(f"report: {os.path.relpath(page)}")
    if outcome.failed:
        print(
            f"{len(outcome.failed)} of {len(plan.jobs)} jobs did not finish; the same command "
            "continues (--retry-failed for those that failed by themselves)",
            file=sys.stderr,
        )
        return 1
    return 0


def _settled(plan: Plan, *, retry_failed: bool, thorough: bool = True) -> tuple[Outcome, list[Job]]:
    """Return what has ended already, and the jobs that have not, looked at :meth:`Job.is_done`."""
    out, outcome, todo = plan.context.out, Outcome(), []
    for job in plan.jobs:
        failure = read_failure(out, job.name)
        if job.is_done(plan.context, thorough=thorough):
            outcome.done.add(job.name)
        elif failure is not None and failure["kind"] != "lost" and not retry_failed:
            outcome.failed[job.name] = f"{failure['message']} (--retry-failed runs it again)"
        else:
            todo.append(job)
    return outcome, todo


def _slots(plan: Plan) -> list[dict[str, Any]]:
    import torch

    gpus = range(torch.cuda.device_count()) if plan.context.device == "cuda" else ()
    return local_slots(plan.workers, gpus=list(gpus), ranks=plan.gpus)


def _slurm_grid(plan: Plan, todo: list[Job], outcome: Outcome) -> "SlurmGrid":
    """Return what Slurm is to run; jobs that wait for a failed one are noted as failed."""
    from ablations.executors.slurm.grid import SlurmGrid

    sent = set()
    for job in todo:
        if (reason := blocked_by(job, outcome)) is not None:
            outcome.failed[job.name] = reason
        else:
            sent.add(job.name)
    return SlurmGrid(
        name=plan.manifest.grid,
        context=plan.context,
        settings=plan.slurm,
        # A part of a job that was sent may be done already.
        jobs=[
            job
            for job in plan.every_job
            if job.name in sent or (job.part_of in sent and not job.is_done(plan.context))
        ],
        known=list(plan.study.jobs(plan.manifest.units)),
        build_report=plan.study.report,
    )


def _preview_slurm(plan: Plan, *, retry_failed: bool) -> list[str]:
    """Return what sbatch would be given, as lines; nothing is sent or written."""
    outcome, todo = _settled(plan, retry_failed=retry_failed, thorough=False)
    return _slurm_grid(plan, todo, outcome).preview() if todo else []


def _run_on_slurm(plan: Plan, todo: list[Job], outcome: Outcome) -> None:
    """Submit the jobs, and watch them until they have ended."""
    grid = _slurm_grid(plan, todo, outcome)
    names = grid.submit()
    print(f"{len(names)} jobs in Slurm; Ctrl-C leaves them there", flush=True)
    try:
        with make_reporter(list(grid.jobs), plan.context) as reporter:
            grid.watch(names, reporter, outcome)
        for job in grid.jobs:
            if job.part_of is not None:
                # What it could not do the whole job did, or failed to do and says so.
                outcome.failed.pop(job.name, None)
    except KeyboardInterrupt:
        print(
            "\nthe jobs go on in Slurm: the same command watches them again, --status shows them "
            "and --cancel ends them",
            file=sys.stderr,
        )
        raise


if __name__ == "__main__":
    use_any_terminal()
    interrupt_on_sigterm()
    sys.exit(main())
