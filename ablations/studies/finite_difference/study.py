"""The study of Pang et al. 2020: finite-difference score matching, as the launcher runs it."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ablations.engine.context import Context
from ablations.engine.job import Job
from ablations.engine.manifest import Manifest, joined_names, split_names
from ablations.engine.settings import parse_overrides
from ablations.engine.study import Item, Request, Resolved, Run, Study
from ablations.pipeline.data import data_facts, planning_root
from ablations.studies.finite_difference.budgets import BUDGETS, Effort
from ablations.studies.finite_difference.cells import DATASET
from ablations.studies.finite_difference.data import Skipped, image_sets, uci_files
from ablations.studies.finite_difference.jobs import trial_jobs
from ablations.studies.finite_difference.trials import (
    FILE,
    FINITE_DIFFERENCE,
    PARTS,
    Trial,
    build_trials,
)
from scorekit.runtime.machine import default_threads

_TITLES = {
    "toy": "score fields of a two-dimensional toy",
    "loss": "loss against wall time (Fig. A(a), (b))",
    "distance": "score networks' samples over training (Fig. A(c))",
    "flow": "a flow by every objective",
    "implicit": "auto-encoders with implicit encoders",
    "epsilon": "what epsilon does: DKEF on UCI tables, deep energies, gradients",
    "cost": "time and memory of a step",
}
#: Which experiments each grid has.
_PARTS = {FINITE_DIFFERENCE: PARTS, **{f"fd-{part}": (part,) for part in PARTS}}


def resolve(request: Request) -> Resolved:
    """Plan the trials that a command line asks for; ValueError or OSError for bad input."""
    args, out, existing = request.args, request.out, request.existing
    begun = request.begun
    budget = args.budget or ("auto" if existing is None else existing.budget)
    budget = budget if budget != "auto" else "quick"
    # Whatever is added to a folder comes with the settings that it was begun with.
    overrides = (existing.overrides if existing else {}) | parse_overrides(args.set, Effort)
    seeds = args.seeds if args.seeds is not None or existing is None else existing.seeds
    effort = dataclasses.replace(BUDGETS[budget].settings, **overrides)
    data_root = request.data_root
    # As many as it would have by itself, however many jobs run beside one another: times and
    # rounding depend on it, and trials are known by it.
    there = [trial.settings["threads"] for trial in existing.units] if existing else []
    threads = args.threads or next(iter(there), None) or default_threads()
    if begun is not None:
        grid, trials, skipped = begun.grid, begun.units, begun.skipped
    else:
        grid = _grid_name(args)
        parts = [p for p in PARTS if any(p in _PARTS[name] for name in split_names(grid))]
        files, images, skipped = _data(parts, data_root)
        facts = None
        if "distance" in parts:
            with planning_root(data_root, dry_run=args.dry_run) as root:
                facts = data_facts(DATASET, root, image_size=None, inception_weights=None)
        trials = build_trials(
            effort,
            parts,
            seeds=seeds,
            files=files,
            images=images,
            place={"device": request.device, "threads": threads},
            facts=facts,
        )
    manifest = Manifest(
        grid=grid,
        budget=budget,
        overrides=overrides,
        data_root=os.path.relpath(data_root, out),
        units=trials,
        skipped=skipped,
        seeds=seeds,
    )
    known = {trial.name for trial in manifest.units}
    if existing is not None:
        manifest = FILE.merged(existing, manifest, out)
    trials = [trial for trial in manifest.units if trial.name in known]
    if args.only is not None:
        trials = select_trials(trials, args.only)
    context = Context(
        out=out,
        data_root=data_root,
        device=request.device,
        threads=threads,
        compile=False,  # which only some of the objectives have
        sampling_batch=min(effort.distance_samples, 250),
        rerun=args.rerun == "changed",
    )
    return Resolved(manifest=manifest, units=trials, context=context)


def select_trials(trials: Sequence[Trial], text: str) -> list[Trial]:
    """Return the trials that a list of names or globs chooses; ValueError for one of none."""
    chosen: set[str] = set()
    for pattern in filter(None, map(str.strip, text.split(","))):
        found = {trial.name for trial in trials if fnmatchcase(trial.name, pattern)}
        if not found:
            known = ", ".join(sorted(trial.name for trial in trials))
            raise ValueError(f"--only {pattern} matches no trial; there are: {known}")
        chosen |= found
    if not chosen:
        raise ValueError(f"--only {text!r} names no trial; leave it out to run all")
    return [trial for trial in trials if trial.name in chosen]


def _grid_name(args: argparse.Namespace) -> str:
    names = map(str.strip, (args.grid or FINITE_DIFFERENCE).split(","))
    return joined_names(list(dict.fromkeys(names)))


def _data(
    parts: list[str], data_root: Path
) -> tuple[dict[str, str], dict[str, str | None], Skipped]:
    """Return the UCI tables and the images that the parts find, and what they do without."""
    files: dict[str, str] = {}
    images: dict[str, str | None] = {}
    skipped: Skipped = []
    if "epsilon" in parts:
        files, skipped = uci_files(data_root)
    of_images = [part for part in ("flow", "implicit") if part in parts]
    if of_images:
        images, absent = image_sets(data_root)
        if absent is not None:
            skipped += [
                {"part": part, "name": f"{part}/mnist", "reason": absent} for part in of_images
            ]
    return files, images, skipped


def _label(manifest: Manifest) -> str:
    own = BUDGETS[manifest.budget].settings
    changed = {k: v for k, v in manifest.overrides.items() if getattr(own, k) != v}
    listed = ", ".join(f"{key}={value}" for key, value in sorted(changed.items()))
    return f"{manifest.budget}, changed: {listed}" if changed else manifest.budget


def _describe(resolved: Resolved, jobs: Sequence[Job]) -> list[str]:
    lines = [
        f"budget {_label(resolved.manifest)}: {BUDGETS[resolved.manifest.budget].description}",
        f"{len(resolved.units)} trials on {resolved.context.device}; results in "
        f"{resolved.context.out}; those whose times are compared run alone",
        "",
    ]
    for job in jobs:
        state = "done" if job.is_done(resolved.context, thorough=False) else "to do"
        alone = "alone" if job.alone else ""
        lines.append(f"  {state:<6} {alone:<6} {job.name}  {job.title}")
    return lines


def _report(out: Path) -> Path:
    # Imported here: the figures' libraries would slow down every error.
    from ablations.studies.finite_difference.report import build_finite_difference_report

    return build_finite_difference_report(out)


def _exhibits() -> tuple[Sequence[Item], type[Run]]:
    from ablations.studies.finite_difference.exhibits import ITEMS, TrialRun

    return ITEMS, TrialRun


STUDY = Study(
    name=FINITE_DIFFERENCE,
    title="Efficient Learning of Generative Models via Finite-Difference Score Matching "
    "(Pang et al., 2020)",
    grids={FINITE_DIFFERENCE: "all of the below", **{f"fd-{p}": _TITLES[p] for p in PARTS}},
    units="trials",
    settings=Effort,
    budgets=BUDGETS,
    file=FILE,
    # Seconds of a trial are those of one device.
    foreign=(
        *("datasets", "vary", "checkpoint", "plugin", "reference"),
        *("inception_weights", "dinov2_weights", "extractor", "gpus"),
    ),
    grid_name=_grid_name,
    resolve=resolve,
    select=select_trials,
    jobs=trial_jobs,
    budget_label=_label,
    describe=_describe,
    report=_report,
    exhibits=_exhibits,
)
