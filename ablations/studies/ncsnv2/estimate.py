"""What a grid will cost, as text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ablations.engine.context import Context
from ablations.engine.job import without_parts
from ablations.engine.settings import Budget
from ablations.engine.stages import Stage
from ablations.pipeline.cell import Cell, image_sizes
from ablations.pipeline.data import DataFacts
from ablations.pipeline.hours import estimate_hours
from ablations.pipeline.jobs import CellJob, grid_jobs
from ablations.studies.ncsnv2.grids import Grid, budget_cells
from ablations.studies.ncsnv2.settings import BUDGETS, budget_label
from scorekit.metrics.spaces import feature_dimension


def describe_plan(
    cells: list[Cell],
    jobs: Sequence[CellJob],
    context: Context,
    budget: Budget,
    overrides: Mapping[str, Any],
) -> str:
    """Return the stages of a grid: what is shared, what is done, and an estimate of the work."""
    store = context.store
    lines = [
        f"budget {budget_label(budget.name, overrides, image_sizes(cells))}: {budget.description}",
        f"{len(cells)} cells on {context.device}; results in {context.out}",
        *describe_warnings(cells),
        "",
    ]
    for cell in cells:
        train = cell.train
        lines.append(
            f"cell {cell.name:<28} sigma_1={train.sigma_begin:.4g} L={cell.sampling_levels} "
            f"T={cell.n_steps_each} epsilon={cell.step_size:.3g} "
            f"{'conditional' if train.conditional else 's(x)/sigma'} lr={train.learning_rate:g} "
            f"{train.objective} "
            f"weights={cell.weights}"
        )
    lines += ["", "stages (digest: cells that share it)"]
    for stage, users in _shared(cells, Cell.train_stage).items():
        state = "done" if store.result(stage) is not None else "to do"
        train = users[0].train
        lines.append(
            f"  train     {stage.digest}  {state:<6} {train.iterations} iterations of "
            f"{train.batch_size}: {', '.join(cell.name for cell in users)}"
        )
    for cell in cells:
        snapshots = cell.train.snapshot_iterations
        stages = [s for i in snapshots for s in cell.sample_stages(i, final=False)]
        done = sum(store.result(stage) is not None for stage in stages)
        lines.append(
            f"  sample    {cell.name}: {done} of {len(stages)} snapshots done; one trajectory per "
            f"snapshot serves both denoise settings; {cell.n_selection} samples each, "
            f"then {cell.n_final} in all from the best"
        )
    for kind, pick in (
        ("reference", Cell.reference_stage),
        ("baseline", Cell.baseline_stage),
    ):
        for stage, users in _shared(cells, pick).items():
            state = "done" if store.result(stage) is not None else "to do"
            lines.append(f"  {kind:<9} {stage.digest}  {state:<6} {len(users)} cells")
    evaluations = sum(job.n_sampled * job.cell.score_evaluations for job in jobs)
    passes = sum(3 * job.n_trained for job in jobs)
    pending = [job for job in jobs if not job.is_done(context)]
    lines += [
        "",
        f"work: {evaluations:.3g} score evaluations in sampling, {passes:.3g} in training (a step "
        "counts three)",
        f"      {sum(job.flops for job in jobs):.3g} FLOPs in all, "
        f"{sum(job.flops for job in pending):.3g} of them to do",
        *_hours(pending, context),
        f"disk: about {sum(job.disk_bytes for job in jobs) / 2**20:.0f} MiB in all",
    ]
    return "\n".join(lines)


def _hours(pending: Sequence[CellJob], context: Context) -> list[str]:
    if not pending:
        return []
    if context.device != "cpu" and not torch.cuda.is_available():
        return [f"time: not known here, where no {context.device} device is to time steps on"]
    hours = estimate_hours(pending, context)
    text = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    return [
        f"time: about {text} of training and sampling to do, one job after another, from timed "
        f"steps on this {context.device} with {context.threads} thread(s), not compiled"
    ]


def describe_budgets(
    grid: Grid, overrides: dict[str, Any], facts: list[DataFacts], seeds: int, *, chosen: Budget
) -> str:
    """Return a line with the work of the budget that was chosen for want of one, and of others."""

    def cost(budget: Budget) -> str:
        try:
            cells = budget_cells(grid, budget, overrides, facts, seeds)
        except ValueError:
            return "(refused with these settings)"
        return f"{sum(job.flops for job in without_parts(grid_jobs(cells))):.1e}"

    others = " and ".join(
        f"{budget.name} {'would take ' * (first == 0)}{cost(budget)}"
        for first, budget in enumerate(b for b in BUDGETS.values() if b is not chosen)
    )
    return f"no --budget given, so {chosen.name}: {cost(chosen)} FLOPs; {others} (--budget NAME)"


def _shared(cells: list[Cell], pick: Callable[[Cell], Stage]) -> dict[Stage, list[Cell]]:
    """Return the stages that ``pick`` gives, each with the cells that share it."""
    found: dict[Stage, list[Cell]] = {}
    for cell in cells:
        found.setdefault(pick(cell), []).append(cell)
    return found


def describe_warnings(cells: list[Cell]) -> list[str]:
    """Return a line for each sample count that is too small for a full covariance."""
    lines = {}
    for cell in cells:
        dimension = feature_dimension(cell.data.extractor)
        for name, n in (("n_selection", cell.n_selection), ("n_final", cell.n_final)):
            if dimension is not None and n <= dimension:
                lines[cell.data.extractor, name] = (
                    f"warning: {name} = {n} samples for the {dimension} features of "
                    f"{cell.data.extractor}: their covariance is singular, so compare such "
                    f"distances at equal n only; more than {dimension} give it full rank"
                )
    return list(lines.values())
