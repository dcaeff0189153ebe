"""The launcher's command line: parsed, resolved and checked, before any work."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ablations.cells import Cell
from ablations.early_checks import check_out, check_text, check_texts
from ablations.finite_difference_plan import FINITE_DIFFERENCE, PARTS, PLAN_FILE
from ablations.grids import GRIDS, build_cells, data_facts, load_grid
from ablations.jobs import Context, Job, plan_jobs
from ablations.manifest import Manifest, load_manifest
from ablations.naming import file_name
from ablations.selection import select_cells, split_datasets
from ablations.settings import (
    BUDGETS,
    EXECUTION_SETTINGS,
    Budget,
    Settings,
    apply_overrides,
    parse_overrides,
)
from ablations.slurm_settings import SlurmSettings, slurm_settings
from ablations.without_effect import describe_without_effect
from scorekit.machine import usable_cores
from scorekit.training import check_accumulation

#: Far above any use; more would fill the memory before anything is run.
MAX_COUNT = 10_000


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
    warnings: tuple[str, ...] = ()  # of settings that some rows do not take


def make_plan(args: argparse.Namespace) -> Plan:
    """Resolve the command line; raises ValueError or OSError, in one line, for bad input."""
    import torch

    check_texts(args)
    if args.parts is not None:
        raise ValueError(f"--parts {args.parts}: only --grid {FINITE_DIFFERENCE} has parts")
    grid = load_grid(args.grid)
    if args.rows is not None:
        grid = replace(grid, name=args.rows, rows=GRIDS[args.rows].rows)
    slurm = slurm_settings(grid.slurm, args.slurm)
    device = _device(args, slurm)
    out = (args.out or Path("runs") / file_name(load_grid(args.grid).name)).resolve()
    check_out(out)
    if (out / PLAN_FILE).exists():
        raise ValueError(
            f"--out {out} holds the report of --grid {FINITE_DIFFERENCE}; choose another"
        )
    existing = load_manifest(out)
    # A folder that was begun goes on as it was, wherever the command is given.
    wanted = args.budget or grid.budget or ("auto" if existing is None else existing.budget)
    budget = BUDGETS[wanted if wanted != "auto" else ("paper" if device == "cuda" else "quick")]
    overrides = grid.overrides | parse_overrides(args.set, Settings)
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
        if value is not None and not 1 <= value <= MAX_COUNT:
            raise ValueError(f"{name} {value}: must be at least 1 and at most {MAX_COUNT}")
    weights = args.inception_weights
    if weights is not None and not weights.is_file():
        raise ValueError(
            f"--inception-weights {weights}: no such file; torch-fidelity's "
            "weights-inception-2015-12-05-6726825d.pth is expected"
        )
    data_root = (args.data_root or out / "data").resolve()
    specs = split_datasets(args.datasets or "") or list(grid.datasets) or list(budget.datasets)
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
        check_text("--datasets", called)
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
    # Other rows in a folder come with the settings of those that it was begun with.
    required = () if args.rows is not None else parse_overrides(args.set, Settings)
    warnings = describe_without_effect(manifest.cells, overrides, required)
    known = {cell.name for cell in manifest.cells}
    manifest = manifest if existing is None else existing.merged(manifest, out)
    cells = [cell for cell in manifest.cells if cell.name in known]
    if args.only is not None:
        cells = select_cells(cells, args.only)
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
        warnings=tuple(warnings),
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
