"""The launcher's command line: parsed, resolved and checked, before any work."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ablations.engine.context import Context
from ablations.engine.manifest import PLAN_FILE, Manifest, load_manifest
from ablations.engine.settings import Budget, apply_overrides, parse_overrides
from ablations.executors.slurm.settings import SlurmSettings, slurm_settings
from ablations.pipeline.cell import Cell
from ablations.pipeline.data import DataFacts, data_facts
from ablations.pipeline.early_checks import check_out, check_text, check_texts
from ablations.pipeline.estimate import describe_budgets
from ablations.pipeline.jobs import Job, plan_jobs
from ablations.pipeline.naming import file_name
from ablations.pipeline.patterns import select_cells, split_datasets
from ablations.studies.finite_difference.study import FINITE_DIFFERENCE, PARTS
from ablations.studies.ncsnv2.grids import GRIDS, budget_cells, load_grid
from ablations.studies.ncsnv2.settings import BUDGETS, EXECUTION_SETTINGS, Settings
from ablations.studies.ncsnv2.without_effect import describe_without_effect
from scorekit.metrics.spaces import extractor_digest
from scorekit.runtime.machine import usable_cores
from scorekit.training.gradients import check_accumulation

#: Far above any use; more would fill the memory before anything is run.
MAX_COUNT = 10_000
DEFAULT_GRID = "paper"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; argparse exits with code 2 on a bad one."""
    parser = argparse.ArgumentParser(
        prog="python -m ablations.launch",
        description="Run an ablation grid of NCSN -> NCSNv2 and report it. The same command again "
        "continues what was interrupted, and does nothing where all is done.",
    )
    add = parser.add_argument
    known = ", ".join([*GRIDS, FINITE_DIFFERENCE])
    add(
        "--grid",
        help=f"{known}, or a TOML file (default: what --out holds already, else {DEFAULT_GRID})",
    )
    add("--parts", metavar="PART,...", help=f"of {FINITE_DIFFERENCE}: {', '.join(PARTS)}")
    add("--rows", choices=GRIDS, help="run that grid's rows with the settings of --grid")
    add(
        "--budget",
        choices=["auto", *BUDGETS],
        help="auto (default): that of --out, where it holds a grid, else quick",
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
        "setup, or a long option of sbatch; train.KEY, evaluate.KEY and report.KEY are of one kind "
        "of job",
    )
    add("--reference", choices=["train", "test"], help="real images to compare with (see README)")
    add("--inception-weights", type=Path, metavar="PATH", help="torch-fidelity's Inception weights")
    add("--extractor", metavar="NAME", help="feature space other than the data set's own")
    add(
        "--dry-run",
        action="store_true",
        help="print the stages, their cost and what Slurm would get; run nothing",
    )
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
    gpus: int  # of each training, and on one machine of each job
    slurm: dict[str, SlurmSettings]  # by kind of job
    notes: tuple[str, ...] = ()  # lines that a person is told before work starts


def make_plan(args: argparse.Namespace) -> Plan:
    """Resolve the command line; raises ValueError or OSError, in one line, for bad input."""
    import torch

    check_texts(args)
    if args.parts is not None:
        raise ValueError(f"--parts {args.parts}: only --grid {FINITE_DIFFERENCE} has parts")
    out = output_folder(args)
    check_out(out)
    if args.executor == "slurm" and "%" in str(out):
        raise ValueError(
            f"--out {out}: Slurm reads % in the path of a log; choose a folder without it"
        )
    if (out / PLAN_FILE).exists():
        raise ValueError(
            f"--out {out} holds the report of --grid {FINITE_DIFFERENCE}; choose another"
        )
    existing = load_manifest(out)
    asks_more = (args.grid, args.datasets, args.seeds) != (None, None, None)
    begun = None if asks_more else existing
    grid = load_grid(args.grid or DEFAULT_GRID)
    if begun is not None:
        grid = replace(grid, name=begun.grid)
    if args.rows is not None:
        grid = replace(grid, name=args.rows, rows=GRIDS[args.rows].rows)
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
    slurm = slurm_settings(grid.slurm, args.slurm, gpus=args.gpus)
    device = _device(args, slurm)
    # A folder that was begun goes on as it was, wherever the command is given.
    wanted = args.budget or grid.budget or ("auto" if existing is None else existing.budget)
    # The others cost days, and nobody has asked for them.
    budget = BUDGETS[wanted if wanted != "auto" else "quick"]
    given = parse_overrides(args.set, Settings)
    overrides = (begun.overrides if begun else grid.overrides) | given
    if args.reference is not None:
        overrides["reference"] = args.reference
    settings = apply_overrides(budget.settings, overrides)
    weights = args.inception_weights
    if weights is not None and not weights.is_file():
        raise ValueError(
            f"--inception-weights {weights}: no such file; torch-fidelity's "
            "weights-inception-2015-12-05-6726825d.pth is expected"
        )
    data_root = (args.data_root or out / (begun.data_root if begun else "data")).resolve()
    if begun is not None:
        facts = _known_facts(begun, data_root, args)
        seeds = 1 + max(cell.seed for cell in begun.cells)
    else:
        specs = split_datasets(args.datasets or "") or list(grid.datasets) or list(budget.datasets)
        with _planning_root(data_root, dry_run=args.dry_run) as root:
            facts = [
                data_facts(
                    spec,
                    root,
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
        cells=begun.cells
        if begun is not None and args.rows is None
        else budget_cells(grid, budget, overrides, facts, seeds),
    )
    added = manifest.cells
    known = {cell.name for cell in added}
    manifest = manifest if existing is None else existing.merged(manifest, out)
    # Other rows in a folder come with the settings of those that it was begun with.
    required = () if args.rows is not None else given
    notes = describe_without_effect(added, overrides, required)
    if wanted == "auto":
        notes.append(describe_budgets(grid, overrides, facts, seeds, chosen=budget))
    cells = [cell for cell in manifest.cells if cell.name in known]
    if args.only is not None:
        cells = select_cells(cells, args.only)
    n_gpus = torch.cuda.device_count() if device == "cuda" else 0
    places = n_gpus or usable_cores() // (args.threads or 1)
    gpus = args.gpus or slurm["train"].gpus or 1
    workers = args.workers or max(1, places // gpus)
    executor = args.executor
    if executor == "auto":
        executor = "local" if workers > 1 or gpus > 1 else "inline"
    if executor == "slurm":
        workers = args.workers or slurm["train"].array_parallelism
    _check_gpus(gpus, executor, n_gpus)
    for cell in cells:
        check_accumulation(settings.accumulation, cell.train.batch_size, gpus)
    context = Context(
        out=out,
        data_root=data_root,
        device=device,
        threads=args.threads or _threads(executor, slurm["train"]),
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
        slurm={
            kind: replace(
                settings,
                array_parallelism=args.workers or settings.array_parallelism,
                threads=args.threads or settings.cpus or 1,
            )
            for kind, settings in slurm.items()
        },
        notes=tuple(notes),
    )


def output_folder(args: argparse.Namespace) -> Path:
    """Return OUT, an absolute path; ValueError for a grid that is none."""
    if args.out is not None:
        return args.out.resolve()
    return (Path("runs") / file_name(load_grid(args.grid or DEFAULT_GRID).name)).resolve()


def load_cells(args: argparse.Namespace) -> tuple[list[Cell], Context]:
    """Return what OUT holds, of it what ``--only`` chooses, and a context to read it by.

    Reads ``OUT/grid.json`` and writes nothing. Raises ValueError where there is none.
    """
    out = output_folder(args)
    manifest = load_manifest(out)
    if manifest is None:
        raise ValueError(f"--out {out} holds no grid (no grid.json); give the --out of one")
    data_root = args.data_root or out / manifest.data_root
    # Only paths matter for reading.
    context = Context(
        out=out,
        data_root=data_root.resolve(),
        device="cpu",
        threads=1,
        compile=False,
        sampling_batch=1,
    )
    cells = manifest.cells if args.only is None else select_cells(manifest.cells, args.only)
    return cells, context


def _known_facts(begun: Manifest, data_root: Path, args: argparse.Namespace) -> list[DataFacts]:
    """Return what a begun folder's data are; ValueError where a path must be given once more."""
    facts = list(dict.fromkeys(cell.data for cell in begun.cells))
    for data in facts:
        if not (data_root / data.store).exists():
            raise ValueError(
                f"--data-root {data_root} has no {data.store}; prepare {data.name} again, by "
                "--grid and --datasets as at first or by python -m scorekit.data prepare"
            )
        weights = args.inception_weights if data.extractor.startswith("inception") else None
        if args.extractor not in (None, data.extractor):
            raise ValueError(
                f"--extractor {args.extractor}: --out was begun with {data.extractor}; choose "
                "another --out"
            )
        if data.extractor.startswith("inception") and weights is None:
            raise ValueError("--inception-weights must be given: --out was begun with them")
        if extractor_digest(data.extractor, weights) != data.extractor_fingerprint:
            raise ValueError(
                f"--inception-weights {weights}: --out was begun with another {data.extractor}"
            )
    return facts


@contextmanager
def _planning_root(data_root: Path, *, dry_run: bool) -> Iterator[Path]:
    """Give the folder where data are prepared for planning: a dry run writes nothing there.

    It sees what is prepared already, and prepares what is not in a temporary folder.
    """
    if not dry_run:
        yield data_root
        return
    with TemporaryDirectory(prefix="scorekit-dry-run-") as folder:
        root = Path(folder).resolve()
        for path in data_root.iterdir() if data_root.is_dir() else ():
            if not path.name.startswith(".") and path.suffix != ".partial":
                (root / path.name).symlink_to(path)
        yield root


def _device(args: argparse.Namespace, slurm: dict[str, SlurmSettings]) -> str:
    """Return "cpu" or "cuda"; what this machine lacks Slurm's may have."""
    import torch

    here = torch.cuda.is_available()
    if args.executor == "slurm":
        asked = any(settings.gpus is not None for settings in slurm.values())
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
