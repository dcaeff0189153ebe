"""The study of Song & Ermon 2020: variants from NCSN to NCSNv2, as the launcher runs them."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations.engine.context import Context
from ablations.engine.job import Job
from ablations.engine.manifest import Manifest
from ablations.engine.settings import apply_overrides, parse_overrides
from ablations.engine.study import Item, Request, Resolved, Run, Study
from ablations.pipeline.cell import Cell, image_sizes
from ablations.pipeline.data import (
    DataFacts,
    data_facts,
    extractor_fingerprint,
    planning_root,
)
from ablations.pipeline.early_checks import (
    check_extractors,
    check_networks,
    check_text,
    too_few_images,
)
from ablations.pipeline.jobs import CellJob, grid_jobs
from ablations.pipeline.manifest import GRID_FILE
from ablations.pipeline.patterns import select_cells, split_datasets
from ablations.pipeline.selection import seconds_spent
from ablations.studies.ncsnv2.estimate import describe_budgets, describe_plan, describe_warnings
from ablations.studies.ncsnv2.grids import (
    GRIDS,
    Grid,
    budget_cells,
    load_grid,
    renewed,
    rows_beside,
    with_checkpoints,
    with_known_averages,
)
from ablations.studies.ncsnv2.rows import parse_vary, rows_of, settings_apart, varied
from ablations.studies.ncsnv2.settings import BUDGETS, Profile, Settings, budget_label
from ablations.studies.ncsnv2.without_effect import describe_without_effect
from scorekit.metrics.downloads import inception_weights_file
from scorekit.metrics.spaces import DINOV2, INCEPTION, WEIGHTS_OPTIONS
from scorekit.training.gradients import check_accumulation

DEFAULT_GRID = "paper"


def resolve(request: Request) -> Resolved:
    """Plan the cells that a command line asks for; ValueError or OSError for bad input."""
    if (held := request.existing) is not None:
        held = renewed(held, BUDGETS[held.budget], lambda data: _prepared_again(data, request))
        request = dataclasses.replace(request, existing=held)
    args, out, existing = request.args, request.out, request.existing
    grid = load_grid(args.grid or DEFAULT_GRID)
    begun = request.begun
    # Rows of grids of ours, asked for by their names alone, come with the settings and the data
    # that the folder was begun with.
    named = args.grid is not None and {n.strip() for n in args.grid.split(",")} <= GRIDS.keys()
    adds_rows = named and (args.datasets, args.seeds) == (None, None)
    source = existing if adds_rows else begun
    seeds = args.seeds if args.seeds is not None else (grid.seeds or 1)
    # A folder that was begun goes on as it was, wherever the command is given.
    before = existing.budget if existing is not None else "auto"
    wanted = args.budget or grid.budget or before
    # The others cost days, and nobody has asked for them.
    budget = BUDGETS[wanted if wanted != "auto" else "quick"]
    given = parse_overrides(args.set, Profile)
    values = parse_vary(args.vary or [])
    overrides = (source.overrides if source else grid.overrides) | given
    if args.reference is not None:
        overrides["reference"] = args.reference
    settings = apply_overrides(budget.settings, overrides)
    weights = _weights(args)
    data_root = request.data_root
    if source is not None:
        facts = _known_facts(source, data_root, args.extractor, weights)
        seeds = 1 + max(cell.seed for cell in source.units)
    else:
        specs = split_datasets(args.datasets or "") or list(grid.datasets) or list(budget.datasets)
        with planning_root(data_root, dry_run=args.dry_run) as root:
            facts = [
                data_facts(
                    spec,
                    root,
                    image_size=settings.image_size,
                    inception_weights=weights.get(INCEPTION),
                    dinov2_weights=weights.get(DINOV2),
                    extractor=args.extractor,
                )
                for spec in dict.fromkeys(specs)
            ]
    _check_names([data.name for data in facts])
    # What changes no result may differ from one command to the next.
    shaping = {k: v for k, v in overrides.items() if hasattr(Settings, k)}
    as_it_was = begun is not None and (begun.budget, begun.overrides) == (budget.name, shaping)
    if begun is not None:
        grid = Grid(name=begun.grid, rows=rows_of(begun.units))
    if begun is None or args.checkpoint:
        grid = with_checkpoints(grid, args.checkpoint or [])
    grid = dataclasses.replace(grid, rows=varied(grid.rows, values))
    base, base_overrides = budget, shaping
    if existing is not None:
        base, base_overrides = BUDGETS[existing.budget], existing.overrides
        grid = rows_beside(grid, budget, shaping, facts, base=base, base_overrides=base_overrides)
    manifest = Manifest(
        grid=grid.name,
        budget=base.name,
        overrides=base_overrides,
        data_root=os.path.relpath(data_root, out),
        units=begun.units
        if begun is not None and as_it_was and not (values or args.checkpoint)
        else with_known_averages(budget_cells(grid, base, base_overrides, facts, seeds), existing),
    )
    added = manifest.units
    known = {cell.name for cell in added}
    if existing is not None:
        manifest = GRID_FILE.merged(existing, manifest, out)
    required = () if source is not None and begun is None else given
    notes = describe_without_effect(added, overrides, required)
    if existing is not None and (base.name, base_overrides) != (budget.name, shaping):
        keys = ", ".join(settings_apart(added))
        notes.append(f"rows with settings other than those of --out are named after them ({keys})")
    if wanted == "auto":
        notes.append(describe_budgets(grid, overrides, facts, seeds, chosen=budget))
    cells = [cell for cell in manifest.units if cell.name in known]
    if args.only is not None:
        cells = select_cells(cells, args.only)
    for cell in cells:
        check_accumulation(settings.accumulation, cell.train.batch_size, request.gpus)
    context = Context(
        out=out,
        data_root=data_root,
        device=request.device,
        threads=request.threads,
        compile=settings.compile,
        sampling_batch=settings.sampling_batch,
        accumulation=settings.accumulation,
        extractor_weights=next(iter(weights.values()), None),
        rerun=args.rerun == "changed",
    )
    return Resolved(manifest=manifest, units=cells, context=context, notes=tuple(notes))


def _prepared_again(data: DataFacts, request: Request) -> DataFacts:
    """Return the facts of a folder's data set as a plugin has it now."""
    if ":" in data.name:
        raise ValueError(
            f"--plugin: the data set {data.name} is now another, and its path is not known; choose "
            "another --out"
        )
    with planning_root(request.data_root, dry_run=request.args.dry_run) as root:
        return data_facts(
            data.name,
            root,
            image_size=data.image_size,
            inception_weights=request.args.inception_weights,
            extractor=data.extractor,
        )


def _check_names(names: Sequence[str]) -> None:
    for called in names:
        check_text("--datasets", called)
    for called in names:
        if names.count(called) > 1:
            raise ValueError(
                f"--datasets: two of them are called {called}, and their results would share its "
                "rows; rename a folder or use another --out"
            )


def _weights(args: argparse.Namespace) -> dict[str, Path]:
    """Return the file with the weights of a feature space that ships none, where one is given."""
    if args.dinov2_weights is None:
        found = inception_weights_file(args.inception_weights)
        return {} if found is None else {INCEPTION: found}
    option, _, file = WEIGHTS_OPTIONS[DINOV2]
    if args.inception_weights is not None:
        raise ValueError(f"{option}, --inception-weights: two feature spaces; leave one out")
    if not args.dinov2_weights.is_file():
        raise ValueError(f"{option} {args.dinov2_weights}: no such file; {file} is expected")
    return {DINOV2: args.dinov2_weights.resolve()}


def _known_facts(
    begun: Manifest, data_root: Path, extractor: str | None, weights: Mapping[str, Path]
) -> list[DataFacts]:
    """Return what a begun folder's data are; ValueError where a path must be given once more."""
    facts = list(dict.fromkeys(cell.data for cell in begun.units))
    for data in facts:
        if not (data_root / data.store).exists():
            raise ValueError(
                f"--data-root {data_root} has no {data.store}; prepare {data.name} again, by "
                "--grid and --datasets as at first or by python -m scorekit.data prepare"
            )
        given = weights.get(data.extractor)
        if extractor not in (None, data.extractor):
            raise ValueError(
                f"--extractor {extractor}: --out was begun with {data.extractor}; choose "
                "another --out"
            )
        if data.extractor in WEIGHTS_OPTIONS and given is None:
            option = WEIGHTS_OPTIONS[data.extractor][0]
            raise ValueError(f"{option} must be given: --out was begun with them")
        if extractor_fingerprint(data.extractor, given) != data.extractor_fingerprint:
            option = WEIGHTS_OPTIONS.get(data.extractor, ("--extractor",))[0]
            raise ValueError(f"{option} {given}: --out was begun with another {data.extractor}")
    return facts


def _slurm(args: argparse.Namespace) -> Mapping[str, Any]:
    return load_grid(args.grid or DEFAULT_GRID).slurm


def _plugins(args: argparse.Namespace) -> Sequence[Path]:
    return load_grid(args.grid or DEFAULT_GRID).plugins


def _grid_name(args: argparse.Namespace) -> str:
    return load_grid(args.grid or DEFAULT_GRID).name


def _label(manifest: Manifest) -> str:
    return budget_label(manifest.budget, manifest.overrides, image_sizes(manifest.units))


def _describe(resolved: Resolved, jobs: Sequence[Job]) -> list[str]:
    cell_jobs = [job for job in jobs if isinstance(job, CellJob)]
    manifest = resolved.manifest
    return describe_plan(
        resolved.units,
        cell_jobs,
        resolved.context,
        BUDGETS[manifest.budget],
        manifest.overrides,
    ).splitlines()


def _check(pending: Sequence[Job], context: Context, look: bool) -> list[str]:
    jobs = [job for job in pending if isinstance(job, CellJob)]
    few = too_few_images(jobs)
    if look:
        # What it prepared for a look is gone again.
        jobs = [j for j in jobs if (context.data_root / j.cell.data.store).exists()]
    elif few:
        raise ValueError(few[0])
    check_networks(jobs, context)
    check_extractors(jobs, context)
    return [f"warning: {line}" for line in few]


def _summary(cells: Sequence[Cell], context: Context) -> list[str]:
    working, compiling = seconds_spent(list(cells), context.store)
    if not working:
        return []
    share = compiling / (working + compiling)
    return [f"training and sampling: {working:.0f} s; compiling: {compiling:.0f} s ({share:.0%})"]


def _report(out: Path) -> Path:
    # Imported here: the figures' libraries would slow down --help, --status and every error.
    from ablations.studies.ncsnv2.collect import collect
    from ablations.studies.ncsnv2.report import build_report

    return build_report(collect(out), out / "report")


def _joined_report(folders: Sequence[Path], out: Path) -> Path:
    from ablations.studies.ncsnv2.joined import load
    from ablations.studies.ncsnv2.report import build_report

    return build_report(load(*folders), out)


def _exhibits() -> tuple[Sequence[Item], type[Run]]:
    from ablations.studies.ncsnv2.reproductions import ITEMS, GridRun

    return ITEMS, GridRun


STUDY = Study(
    name="ncsnv2",
    title="Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020)",
    grids={
        "paper": "NCSN, +(5), +(1, 2, 4), NCSNv2: Table 1's rows, and the consistent sampler",
        "factorial": "every combination of the technique groups (5; 1, 2, 4; 3)",
        "steps": "NCSNv2 sampled with fewer noise scales and steps",
        "successors": "NCSNv2 by later samplers, starts, step sizes and noise scales",
        "noise-conditioning": "NCSNv2 told the noise scale or blind, plain or preconditioned",
        "ema": "NCSNv2 with averages of one training from none to wide",
        "released": "networks from files (--checkpoint), sampled and measured, none trained",
        "objectives": "NCSN with averaged weights by DSM, SSM-VR and FD-SSM-VR",
    },
    units="cells",
    settings=Profile,
    budgets=BUDGETS,
    file=GRID_FILE,
    slurm=_slurm,
    plugins=_plugins,
    grid_name=_grid_name,
    resolve=resolve,
    select=select_cells,
    jobs=grid_jobs,
    budget_label=_label,
    describe=_describe,
    warnings=lambda cells: describe_warnings(list(cells)),
    check=_check,
    summary=_summary,
    report=_report,
    joined_report=_joined_report,
    headline="ablation",
    exhibits=_exhibits,
)
