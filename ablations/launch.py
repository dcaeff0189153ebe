"""``python -m ablations.launch``: turn a named grid into jobs, run them, and write the report."""

import argparse
import fnmatch
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablations.cells import Cell
from ablations.executors import Outcome, blocked_by, local_slots, run_inline, run_submitted
from ablations.failures import clear_failure, read_failure
from ablations.finite_difference_plan import FINITE_DIFFERENCE, PARTS, PLAN_FILE
from ablations.grids import GRIDS, build_cells, data_facts, load_grid
from ablations.jobs import (
    Context,
    Job,
    job_is_done,
    more_jobs,
    plan_jobs,
    seconds_spent,
    snapshot_jobs,
)
from ablations.leftovers import remove_leftovers
from ablations.lock import launcher_lock
from ablations.manifest import Manifest, load_manifest, save_manifest
from ablations.plan import check_disk, describe_plan, describe_warnings
from ablations.progress import make_reporter
from ablations.refresh import mark_stale, refresh_report
from ablations.settings import (
    BUDGETS,
    EXECUTION_SETTINGS,
    Budget,
    apply_overrides,
    parse_overrides,
)
from ablations.slurm_settings import SlurmSettings, slurm_settings
from ablations.status import describe_status
from scorekit.machine import usable_cores
from scorekit.training import check_accumulation


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; argparse exits with code 2 on a bad one."""
    parser = argparse.ArgumentParser(
        prog="python -m ablations.launch",
        description="Run an ablation grid of NCSN -> NCSNv2 and report it. The same command again "
        "continues what was interrupted, and does nothing where all is done.",
    )
    add = parser.add_argument
    known = ", ".join([*GRIDS, FINITE_DIFFERENCE])
    add("--grid", default="paper", help=f"{known}, or a TOML file (default: paper)")
    add("--parts", metavar="PART,...", help=f"of {FINITE_DIFFERENCE}: {', '.join(PARTS)}")
    add("--rows", choices=GRIDS, help="run that grid's rows with the settings of --grid")
    add(
        "--budget",
        choices=["auto", *BUDGETS],
        help="auto (default): paper on CUDA, quick otherwise",
    )
    add("--datasets", help="comma-separated; `python -m scorekit.data list` names them")
    add("--data-root", type=Path, help="where prepared images are kept (default: OUT/data)")
    add("--out", type=Path, help="default: runs/<grid>")
    add("--seeds", type=int, metavar="N", help="number of seeds (default: 1)")
    add(
        "--executor",
        choices=["auto", "inline", "local", "slurm"],
        default="auto",
        help="auto (default): local processes on a CPU or several GPUs, inline on one GPU",
    )
    add(
        "--workers",
        type=int,
        metavar="N",
        help="jobs at a time (default: as many as the cores or GPUs suffice for; slurm: 32 of an "
        "array)",
    )
    add(
        "--gpus",
        type=int,
        metavar="N",
        help="devices that train and evaluate each job together; on a CPU, for tests, N processes "
        "of --threads threads (default: 1, or that of the grid's [slurm])",
    )
    add("--threads", type=int, help="CPU threads of a job (default: 1; inline: all cores)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--only", metavar="PATTERN", help="cells to run: comma-separated names or globs")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    add(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="partition, account, qos, constraint, gpus, cpus, memory, time, array_parallelism, "
        "setup, or a long option of sbatch",
    )
    add("--reference", choices=["train", "test"], help="real images to compare with (see README)")
    add("--inception-weights", type=Path, metavar="PATH", help="torch-fidelity's Inception weights")
    add("--extractor", metavar="NAME", help="feature space other than the data set's own")
    add("--dry-run", action="store_true", help="print the stages and their cost, run nothing")
    add("--status", action="store_true", help="print the state of every job, run nothing")
    add("--cancel", action="store_true", help="cancel the jobs in Slurm, run nothing")
    add("--retry-failed", action="store_true", help="run failed and diverged jobs again")
    return parser.parse_args(argv)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A command line, resolved and checked: what would run, where and how."""

    manifest: Manifest
    budget: Budget
    cells: list[Cell]  # those chosen by --only
    jobs: list[Job]
    context: Context
    executor: str
    workers: int
    gpus: int  # of each job
    slurm: SlurmSettings


def make_plan(args: argparse.Namespace) -> Plan:
    """Resolve the command line; raises ValueError or OSError, in one line, for bad input."""
    import torch

    if args.parts is not None:
        raise ValueError(f"--parts {args.parts}: only --grid {FINITE_DIFFERENCE} has parts")
    grid = load_grid(args.grid)
    if args.rows is not None:
        grid = replace(grid, name=args.rows, rows=GRIDS[args.rows].rows)
    slurm = slurm_settings(grid.slurm, args.slurm)
    device = _device(args, slurm)
    wanted = args.budget or grid.budget or "auto"
    budget = BUDGETS[wanted if wanted != "auto" else ("paper" if device == "cuda" else "quick")]
    overrides = grid.overrides | parse_overrides(args.set)
    if args.reference is not None:
        overrides["reference"] = args.reference
    settings = apply_overrides(budget.settings, overrides)
    seeds = args.seeds if args.seeds is not None else (grid.seeds or 1)
    counts = {
        "--seeds": seeds,
        "--threads": args.threads,
        "--workers": args.workers,
        "--gpus": args.gpus,
    }
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}: must be at least 1")
    weights = args.inception_weights
    if weights is not None and not weights.is_file():
        raise ValueError(
            f"--inception-weights {weights}: no such file; torch-fidelity's "
            "weights-inception-2015-12-05-6726825d.pth is expected"
        )
    out = (args.out or Path("runs") / load_grid(args.grid).name).resolve()
    if (out / PLAN_FILE).exists():
        raise ValueError(
            f"--out {out} holds the report of --grid {FINITE_DIFFERENCE}; choose another"
        )
    data_root = (args.data_root or out / "data").resolve()
    specs = _split(args.datasets) or list(grid.datasets) or list(budget.datasets)
    existing = load_manifest(out)
    facts = [
        data_facts(
            spec,
            data_root,
            image_size=settings.image_size,
            inception_weights=weights,
            extractor=args.extractor,
        )
        for spec in dict.fromkeys(specs)
    ]
    names = [data.name for data in facts]
    for called in names:
        if names.count(called) > 1:
            raise ValueError(
                f"--datasets: two of them are called {called}, and their results would share its "
                "rows; rename a folder or use another --out"
            )
    manifest = Manifest(
        grid=grid.name,
        budget=budget.name,
        # What changes no result may differ from one command to the next.
        overrides={k: v for k, v in overrides.items() if k not in EXECUTION_SETTINGS},
        data_root=os.path.relpath(data_root, out),
        cells=build_cells(grid, settings, facts, seeds),
    )
    known = {cell.name for cell in manifest.cells}
    manifest = manifest if existing is None else existing.merged(manifest, out)
    cells = [cell for cell in manifest.cells if cell.name in known]
    if args.only is not None:
        patterns = _split(args.only)
        cells = [c for c in cells if any(_matches(c, pattern) for pattern in patterns)]
        if not cells:
            there = ", ".join(sorted(known))
            raise ValueError(f"--only {args.only} matches no cell; there are: {there}")
    n_gpus = torch.cuda.device_count() if device == "cuda" else 0
    places = n_gpus or usable_cores() // (args.threads or 1)
    gpus = args.gpus or slurm.gpus or 1
    workers = args.workers or max(1, places // gpus)
    executor = args.executor
    if executor == "auto":
        executor = "local" if workers > 1 or gpus > 1 else "inline"
    if executor == "slurm":
        workers = args.workers or slurm.array_parallelism
    _check_gpus(gpus, executor, n_gpus)
    for cell in cells:
        check_accumulation(settings.accumulation, cell.train.batch_size, gpus)
    context = Context(
        out=out,
        data_root=data_root,
        device=device,
        threads=args.threads or _threads(executor, slurm),
        compile=settings.compile,
        sampling_batch=settings.sampling_batch,
        accumulation=settings.accumulation,
        inception_weights=None if weights is None else weights.resolve(),
    )
    return Plan(
        manifest=manifest,
        budget=budget,
        cells=cells,
        jobs=plan_jobs(cells),
        context=context,
        executor=executor,
        workers=workers,
        gpus=gpus,
        slurm=replace(slurm, gpus=gpus, array_parallelism=workers),
    )


def _device(args: argparse.Namespace, slurm: SlurmSettings) -> str:
    """Return "cpu" or "cuda"; what this machine lacks Slurm's may have."""
    import torch

    here = torch.cuda.is_available()
    if args.executor == "slurm":
        asked = args.gpus is not None or slurm.gpus is not None
        return args.device if args.device != "auto" else ("cuda" if here or asked else "cpu")
    if args.device == "cuda" and not here:
        raise ValueError("--device cuda: no CUDA device is available; use cpu or auto")
    return args.device if args.device != "auto" else ("cuda" if here else "cpu")


def _threads(executor: str, slurm: SlurmSettings) -> int:
    return {"inline": usable_cores(), "slurm": slurm.cpus or 1}.get(executor, 1)


def _check_gpus(gpus: int, executor: str, there: int) -> None:
    if gpus > 1 and executor == "inline":
        raise ValueError(
            f"--gpus {gpus}: --executor inline is one process; use --executor local or slurm"
        )
    if executor == "local" and 0 < there < gpus:
        raise ValueError(f"--gpus {gpus}: this machine has {there} GPU(s)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 (all done), 1 (some jobs failed), 2 (bad input), 130."""
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        if args.grid == FINITE_DIFFERENCE:
            if args.gpus not in (None, 1):
                raise ValueError(
                    f"--gpus {args.gpus}: --grid {FINITE_DIFFERENCE} compares times and runs on one"
                )
            # Imported here: its models and statistics would slow down every other start.
            from ablations.finite_difference import launch_parts

            return launch_parts(args)
        plan = make_plan(args)
        if args.dry_run:
            print(describe_plan(plan.cells, plan.jobs, plan.context, plan.budget))
            return 0
        if args.status:
            print(describe_status(_all_jobs(plan.cells), plan.context))
            return 0
        if args.cancel:
            from ablations.slurm import cancel_all

            print(f"cancelled {cancel_all(plan.context.out)} jobs in Slurm")
            return 0
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
    outcome = Outcome()
    todo = []
    for job in plan.jobs:
        failure = read_failure(context.out, job.name)
        if job_is_done(job, context):
            outcome.done.add(job.name)
        elif failure is not None and failure["kind"] != "lost" and not retry_failed:
            outcome.failed[job.name] = f"{failure['message']} (--retry-failed runs it again)"
        else:
            clear_failure(context.out, job.name)
            todo.append(job)
    print(f"budget: {budget.name} — {budget.description}", flush=True)
    print(
        f"grid {plan.manifest.grid}: {len(plan.cells)} cells, {len(plan.jobs)} jobs, "
        f"{len(plan.jobs) - len(todo)} of them settled; {plan.executor} executor on "
        f"{context.device}, {plan.workers if plan.executor != 'inline' else 1} at a time; "
        f"results in {os.path.relpath(context.out)}",
        flush=True,
    )
    for line in describe_warnings(plan.cells):
        print(line)
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
    page = refresh_report(context.out)
    print(f"report: {os.path.relpath(page)}")
    if outcome.failed:
        print(
            f"{len(outcome.failed)} of {len(plan.jobs)} jobs did not finish; the same command "
            "continues (--retry-failed for those that failed by themselves)",
            file=sys.stderr,
        )
        return 1
    return 0


def run_more(plan: Plan, kind: str, cells: list[Cell]) -> dict[str, str]:
    """Run jobs of a kind that grids have not, here, for evaluated cells; return what failed, why.

    ``kind`` is "interpolate" or "neighbours". Raises ValueError where OUT is in use.
    """
    jobs = [j for j in more_jobs(kind, cells) if not job_is_done(j, plan.context)]
    outcome = Outcome()
    if jobs:
        with launcher_lock(plan.context.out), make_reporter(jobs, plan.context) as reporter:
            run_inline(jobs, plan.context, reporter, outcome)
    return outcome.failed


def _run_on_slurm(plan: Plan, todo: list[Job], outcome: Outcome) -> None:
    """Submit the jobs, and watch them until they have ended."""
    from ablations.slurm import SlurmGrid

    context, jobs = plan.context, []
    for job in todo:
        if (reason := blocked_by(job, outcome)) is not None:
            outcome.failed[job.name] = reason
        else:
            jobs.append(job)
    evaluated = [job.cell for job in jobs if job.kind == "evaluate"]
    jobs += [job for job in snapshot_jobs(evaluated) if not job_is_done(job, context)]
    grid = SlurmGrid(
        context=context,
        settings=plan.slurm,
        jobs=jobs,
        known=_all_jobs(plan.manifest.cells),
    )
    names = grid.submit()
    print(f"{len(names)} jobs in Slurm; Ctrl-C leaves them there", flush=True)
    try:
        with make_reporter(jobs, context) as reporter:
            grid.watch(names, reporter, outcome)
        for job in snapshot_jobs(evaluated):
            # What it could not do its cell's evaluation did, or failed to do and says so itself.
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


def _slots(plan: Plan) -> list[dict[str, Any]]:
    import torch

    gpus = range(torch.cuda.device_count()) if plan.context.device == "cuda" else ()
    return local_slots(plan.workers, gpus=list(gpus), ranks=plan.gpus)


def _matches(cell: Cell, pattern: str) -> bool:
    names = (cell.name, cell.slug, cell.label, cell.variant.slug, cell.variant.name, cell.data.name)
    return any(fnmatch.fnmatchcase(name, pattern.lower()) for name in map(str.lower, names))


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


if __name__ == "__main__":
    # A terminated launcher stops its local jobs as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    sys.exit(main())
