"""``python -m ablations.launch``: turn a named grid into jobs, run them, and write the report."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablations.command_line import (
    Plan,
    load_cells,
    make_plan,
    output_folder,
    parse_arguments,
)
from ablations.engine.code_snapshot import code_digest
from ablations.engine.console import make_reporter
from ablations.engine.disk import check_disk
from ablations.engine.failures import clear_failure, read_failure
from ablations.engine.interruption import interrupt_on_sigterm
from ablations.engine.lock import launcher_lock
from ablations.engine.manifest import save_manifest
from ablations.engine.refresh import mark_stale, refresh_report
from ablations.engine.surroundings import use_any_terminal
from ablations.executors.inline import run_inline
from ablations.executors.leftovers import remove_leftovers
from ablations.executors.local import _slots, run_submitted
from ablations.executors.outcome import Outcome, blocked_by
from ablations.executors.status import describe_status
from ablations.pipeline.cell import Cell, image_sizes
from ablations.pipeline.early_checks import check_extractors, too_few_images
from ablations.pipeline.estimate import describe_plan, describe_warnings
from ablations.pipeline.jobs import Job, job_is_done, plan_jobs, snapshot_jobs
from ablations.pipeline.selection import seconds_spent
from ablations.studies.finite_difference.study import FINITE_DIFFERENCE
from ablations.studies.ncsnv2.settings import budget_label
from ablations.studies.ncsnv2.study import build_grid_report

if TYPE_CHECKING:
    from ablations.executors.slurm.grid import SlurmGrid


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 (all done), 1 (some jobs failed), 2 (bad input), 130."""
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        if args.grid == FINITE_DIFFERENCE:
            # Imported here: its models and statistics would slow down every other start.
            from ablations.studies.finite_difference.study import launch_parts

            return launch_parts(args)
        if args.status:
            cells, context = load_cells(args)
            print(describe_status(_all_jobs(cells), context))
            return 0
        if args.cancel:
            from ablations.executors.slurm.grid import cancel_all

            print(f"cancelled {cancel_all(output_folder(args))} jobs in Slurm")
            return 0
        plan = make_plan(args)
        pending = [job for job in plan.jobs if not job_is_done(job, plan.context, dumps=False)]
        few = too_few_images(pending)
        if args.dry_run:
            overrides = plan.manifest.overrides
            for note in (*plan.notes, *(f"warning: {line}" for line in few)):
                print(note)
            print(describe_plan(plan.cells, plan.jobs, plan.context, plan.budget, overrides))
            # What it prepared for a look is gone again.
            root = plan.context.data_root
            check_extractors(
                [j for j in pending if (root / j.cell.data.store).exists()], plan.context
            )
            if plan.executor == "slurm":
                lines = _preview_slurm(plan, retry_failed=args.retry_failed)
                print("\n".join(["", "to Slurm, in this order", *lines]))
            return 0
        if few:
            raise ValueError(few[0])
        check_extractors(pending, plan.context)
        check_disk(plan.cells, plan.jobs, plan.context)
        plan.context.out.mkdir(parents=True, exist_ok=True)
        with launcher_lock(plan.context.out):
            if save_manifest(plan.manifest, plan.context.out):
                mark_stale(plan.context.out)
            # Slurm must first be asked whose files jobs in its queue will need.
            if plan.executor != "slurm" and not (plan.context.out / "slurm").exists():
                remove_leftovers(plan.context.out, len(plan_jobs(plan.manifest.cells)))
            return _run(plan, retry_failed=args.retry_failed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues where it stopped", file=sys.stderr)
        return 130


def _run(plan: Plan, *, retry_failed: bool) -> int:
    context, budget = plan.context, plan.budget
    outcome, todo = _settled(plan, retry_failed=retry_failed)
    for job in todo:
        clear_failure(context.out, job.name)
    label = budget_label(budget.name, plan.manifest.overrides, image_sizes(plan.cells))
    print(f"budget: {label} — {budget.description}", flush=True)
    print(
        f"grid {plan.manifest.grid}: {len(plan.cells)} cells, {len(plan.jobs)} jobs, "
        f"{len(plan.jobs) - len(todo)} of them settled; {plan.executor} executor on "
        f"{context.device}, {plan.workers if plan.executor != 'inline' else 1} at a time; "
        f"results in {os.path.relpath(context.out)}",
        flush=True,
    )
    for line in (*plan.notes, *describe_warnings(plan.cells)):
        print(line)
    if others := sorted(context.store.codes - {code_digest()}):
        print(
            f"warning: results of another version of the code ({', '.join(others)}) than the "
            f"present one ({code_digest()}) are kept; another --out runs them anew"
        )
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
    working, compiling = seconds_spent(plan.cells, context.store)
    if working:
        share = compiling / (working + compiling)
        print(f"training and sampling: {working:.0f} s; compiling: {compiling:.0f} s ({share:.0%})")
    page = refresh_report(context.out, build_grid_report)
    print(f"report: {os.path.relpath(page)}")
    if outcome.failed:
        print(
            f"{len(outcome.failed)} of {len(plan.jobs)} jobs did not finish; the same command "
            "continues (--retry-failed for those that failed by themselves)",
            file=sys.stderr,
        )
        return 1
    return 0


def _settled(plan: Plan, *, retry_failed: bool, dumps: bool = True) -> tuple[Outcome, list[Job]]:
    """Return what has ended already, and the jobs that have not; ``dumps``: check their images."""
    out, outcome, todo = plan.context.out, Outcome(), []
    for job in plan.jobs:
        failure = read_failure(out, job.name)
        if job_is_done(job, plan.context, dumps=dumps):
            outcome.done.add(job.name)
        elif failure is not None and failure["kind"] != "lost" and not retry_failed:
            outcome.failed[job.name] = f"{failure['message']} (--retry-failed runs it again)"
        else:
            todo.append(job)
    return outcome, todo


def _slurm_grid(plan: Plan, todo: list[Job], outcome: Outcome) -> "SlurmGrid":
    """Return what Slurm is to run; jobs that wait for a failed one are noted as failed."""
    from ablations.executors.slurm.grid import SlurmGrid

    context, jobs = plan.context, []
    for job in todo:
        if (reason := blocked_by(job, outcome)) is not None:
            outcome.failed[job.name] = reason
        else:
            jobs.append(job)
    evaluated = [job.cell for job in jobs if job.kind == "evaluate"]
    jobs += [job for job in snapshot_jobs(evaluated) if not job_is_done(job, context)]
    return SlurmGrid(
        name=plan.manifest.grid,
        context=context,
        settings=plan.slurm,
        jobs=jobs,
        known=_all_jobs(plan.manifest.cells),
        build_report=build_grid_report,
    )


def _preview_slurm(plan: Plan, *, retry_failed: bool) -> list[str]:
    """Return what sbatch would be given, as lines; nothing is sent or written."""
    outcome, todo = _settled(plan, retry_failed=retry_failed, dumps=False)
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
            if job.kind == "snapshot":
                # What it could not do its cell's evaluation did, or failed to do and says so.
                outcome.failed.pop(job.name, None)
    except KeyboardInterrupt:
        print(
            "\nthe jobs go on in Slurm: the same command watches them again, --status shows them "
            "and --cancel ends them",
            file=sys.stderr,
        )
        raise


def _all_jobs(cells: list[Cell]) -> list[Job]:
    return [*plan_jobs(cells), *snapshot_jobs(cells)]


if __name__ == "__main__":
    use_any_terminal()
    interrupt_on_sigterm()
    sys.exit(main())
