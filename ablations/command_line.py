"""The launcher's command line: parsed, resolved and checked, before any work."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ablations.engine.context import Context
from ablations.engine.job import Job, without_parts
from ablations.engine.manifest import Manifest
from ablations.engine.naming import file_name
from ablations.engine.plugins import Plugin, joined_plugins, load_plugins, read_plugin
from ablations.engine.study import Request, Resolved, Study
from ablations.executors.slurm.settings import SlurmSettings, slurm_settings
from ablations.pipeline.early_checks import check_out, check_texts
from ablations.studies import all_studies, study_of
from scorekit.runtime.machine import default_threads, usable_cores

#: Far above any use; more would fill the memory before anything is run.
MAX_COUNT = 10_000


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; argparse exits with code 2 on a bad one."""
    parser = argparse.ArgumentParser(
        prog="python -m ablations.launch",
        description="Run the grid of a study and report it. The same command again continues what "
        "was interrupted, and does nothing where all is done.",
    )
    known = ", ".join(name for study in all_studies() for name in study.grids)
    what = _group(parser, "what is run", "--grid factorial --seeds 3 --datasets digits,patches")
    what(
        "--grid",
        help=f"{known}, or a TOML file; several of one study separated by commas (default: what "
        "--out holds already, else paper)",
    )
    what(
        "--budget",
        metavar="NAME",
        help="auto (default): that of --out, where it holds a grid, else quick; hour, paper",
    )
    what("--datasets", help="comma-separated; `python -m scorekit.data list` names them")
    what("--seeds", type=int, metavar="N", help="number of seeds (default: 1)")
    what(
        "--checkpoint",
        action="append",
        metavar="PATH",
        help="with --grid released: a released NCSN or NCSNv2, a snapshot, or an exported network; "
        "a row for its raw and one for its averaged weights",
    )
    what("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    what(
        "--vary",
        action="append",
        metavar="KEY=A,B",
        help="a row for each value of a setting, of several for each combination",
    )
    what(
        "--plugin",
        action="append",
        type=Path,
        metavar="FILE",
        help="a Python file that registers a network, sampler, ... of your own, for settings to "
        "name; --out remembers it",
    )
    what("--only", metavar="PATTERN", help="cells or trials: comma-separated names or globs")
    where = _group(parser, "where it goes", "--out runs/mine --data-root /data/scorekit")
    where("--out", type=Path, help="default: runs/<grid>")
    where("--data-root", type=Path, help="where prepared images are kept (default: OUT/data)")
    how = _group(parser, "how it runs", "--executor local --workers 4 --threads 2")
    how(
        "--executor",
        choices=["auto", "inline", "local", "slurm"],
        default="auto",
        help="auto (default): local processes on a CPU or several GPUs, inline on one GPU",
    )
    how(
        "--workers",
        type=int,
        metavar="N",
        help="jobs at a time (default: as many as the cores or GPUs suffice for; slurm: 32 of an "
        "array)",
    )
    how(
        "--gpus",
        type=int,
        metavar="N",
        help="devices that train and evaluate each job together; on a CPU, for tests, N processes "
        "of --threads threads (default: 1, or that of the grid's [slurm])",
    )
    how(
        "--threads",
        type=int,
        help="CPU threads of a job (default: 1; inline: OMP_NUM_THREADS or all cores)",
    )
    how("--device", choices=["auto", "cpu", "cuda"], default="auto")
    how(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="partition, account, qos, constraint, gpus, cpus, memory, time, array_parallelism, "
        "setup, or a long option of sbatch; train.KEY, evaluate.KEY and report.KEY are of one kind "
        "of job",
    )
    how(
        "--rerun",
        choices=["changed"],
        help="changed: make again what was made by code that is another now",
    )
    how("--retry-failed", action="store_true", help="run failed and diverged jobs again")
    measured = _group(parser, "how it is measured", "--reference test --extractor cifar-cnn")
    measured("--reference", choices=["train", "test"], help="real images to compare with")
    measured(
        "--inception-weights",
        metavar="PATH|download",
        help="torch-fidelity's weights, or the word download: fetched once and kept where "
        "torch-fidelity keeps them",
    )
    measured(
        "--dinov2-weights",
        type=Path,
        metavar="PATH",
        help="the official dinov2_vitl14_pretrain.pth, for --extractor dinov2-vitl14",
    )
    measured("--extractor", metavar="NAME", help="feature space other than the data set's own")
    look = _group(parser, "only look", "--out runs/paper --status")
    look(
        "--dry-run",
        action="store_true",
        help="print the stages, their cost and what Slurm would get; run nothing",
    )
    look("--status", action="store_true", help="print the state of every job, run nothing")
    look(
        "--verify",
        action="store_true",
        help="--status, after reading every byte of every result: large files that nobody touched "
        "since they were found intact are otherwise not read again",
    )
    look("--cancel", action="store_true", help="cancel the jobs in Slurm, run nothing")
    look("--settings", action="store_true", help="print every --set key, its type and values")
    return parser.parse_args(argv)


def _group(parser: argparse.ArgumentParser, title: str, example: str) -> Callable[..., Any]:
    """Return what adds flags to a group of the help, which shows an example."""
    return parser.add_argument_group(title, f"for example: {example}").add_argument


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A command line, resolved and checked: what would run, where and how."""

    study: Study
    resolved: Resolved
    executor: str
    workers: int
    gpus: int  # of each training, and on one machine of each job
    slurm: dict[str, SlurmSettings]  # by kind of job
    notes: tuple[str, ...]  # lines that a person is told before work starts

    @property
    def manifest(self) -> Manifest:
        """All that the folder will hold."""
        return self.resolved.manifest

    @property
    def units(self) -> list[Any]:
        """Those that were asked for, and chosen by --only."""
        return self.resolved.units

    @property
    def context(self) -> Context:
        """Where and how the jobs run."""
        return self.resolved.context

    @cached_property
    def every_job(self) -> list[Job]:
        """The jobs of the units, and the parts of some that a queue can begin earlier."""
        return list(self.study.jobs(self.units))

    @cached_property
    def jobs(self) -> list[Job]:
        """The jobs of the units."""
        return without_parts(self.every_job)


def make_plan(args: argparse.Namespace) -> Plan:
    """Resolve the command line; raises ValueError or OSError, in one line, for bad input."""
    check_texts(args)
    out = output_folder(args)
    check_out(out)
    study = study_of(args.grid, out)
    _check_flags(args, study, out)
    slurm = slurm_settings(dict(study.slurm(args)), args.slurm, gpus=args.gpus)
    device = _device(args, slurm)
    n_gpus = _n_gpus(device)
    places = n_gpus or usable_cores() // (args.threads or 1)
    gpus = args.gpus or slurm["train"].gpus or 1
    workers = args.workers or max(1, places // gpus)
    executor = args.executor
    if executor == "auto":
        executor = "local" if workers > 1 or gpus > 1 else "inline"
    if executor == "slurm":
        workers = args.workers or slurm["train"].array_parallelism
    _check_gpus(gpus, executor, n_gpus)
    existing = study.file.load(out)
    plugins = joined_plugins(existing.plugins if existing else (), given_plugins(args, study))
    load_plugins(plugins)
    request = Request(
        args=args,
        out=out,
        existing=existing,
        device=device,
        threads=args.threads or _threads(executor, slurm["train"]),
        gpus=gpus,
        plugins=plugins,
    )
    resolved = study.resolve(request)
    resolved = replace(
        resolved,
        manifest=replace(resolved.manifest, plugins=plugins),
        context=replace(resolved.context, plugins=plugins),
    )
    skipped = (f"skipped: {s['name']}: {s['reason']}" for s in resolved.manifest.skipped)
    return Plan(
        study=study,
        resolved=resolved,
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
        notes=(*resolved.notes, *skipped),
    )


def given_plugins(args: argparse.Namespace, study: Study) -> list[Plugin]:
    """Return the plugins of the command line and of the grid that it names; none is loaded."""
    return [read_plugin(path) for path in [*study.plugins(args), *(args.plugin or [])]]


def _check_flags(args: argparse.Namespace, study: Study, out: Path) -> None:
    """Raise ValueError for a flag that has no meaning, or a number out of range."""
    for name in study.foreign:
        if getattr(args, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} means nothing to the study {study.name}; leave it out"
            )
    if args.budget not in (None, "auto", *study.budgets):
        known = ", ".join(["auto", *study.budgets])
        raise ValueError(f"--budget {args.budget}: unknown; known: {known}")
    if args.executor == "slurm" and "%" in str(out):
        raise ValueError(
            f"--out {out}: Slurm reads % in the path of a log; choose a folder without it"
        )
    for name in ("seeds", "threads", "workers", "gpus"):
        value = getattr(args, name)
        if value is not None and not 1 <= value <= MAX_COUNT:
            raise ValueError(f"--{name} {value}: must be at least 1 and at most {MAX_COUNT}")


def output_folder(args: argparse.Namespace) -> Path:
    """Return OUT, an absolute path; ValueError for a grid that is none."""
    if args.out is not None:
        out: Path = args.out.resolve()
        return out
    study = study_of(args.grid)
    return (Path("runs") / file_name(study.grid_name(args))).resolve()


def load_units(args: argparse.Namespace) -> tuple[Study, list[Any], Context]:
    """Return what OUT holds, of it what ``--only`` chooses, and a context to read it by.

    Reads the manifest and writes nothing. Raises ValueError where there is none.
    """
    out = output_folder(args)
    study = study_of(args.grid, out)
    manifest = study.file.load(out)
    if manifest is None:
        raise ValueError(f"--out {out} holds no grid (no {study.file.name}); give the --out of one")
    context = Context.reading(out, args.data_root or out / manifest.data_root)
    units = manifest.units if args.only is None else study.select(manifest.units, args.only)
    return study, units, context


def _n_gpus(device: str) -> int:
    import torch

    return torch.cuda.device_count() if device == "cuda" else 0


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
    return {"inline": default_threads(), "slurm": slurm.cpus or 1}.get(executor, 1)


def _check_gpus(gpus: int, executor: str, there: int) -> None:
    if gpus > 1 and executor == "inline":
        raise ValueError(
            f"--gpus {gpus}: --executor inline is one process; use --executor local or slurm"
        )
    if executor == "local" and 0 < there < gpus:
        raise ValueError(f"--gpus {gpus}: this machine has {there} GPU(s)")
