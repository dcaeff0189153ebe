"""What a grid will cost and how far it is, as text."""

import shutil
import time
from collections.abc import Callable

from ablations.cells import Cell
from ablations.failures import read_failure
from ablations.jobs import Context, Job, cell_parameters, job_is_done, progress_path
from ablations.settings import Budget
from ablations.stages import Stage
from scorekit.files import CorruptFile, read_json
from scorekit.metrics import feature_dimension

_STALE_S = 120


def describe_plan(cells: list[Cell], jobs: list[Job], context: Context, budget: Budget) -> str:
    """Return the stages of a grid: what is shared, what is done, and an estimate of the work."""
    store = context.store
    lines = [
        f"budget {budget.name}: {budget.description}",
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
            f"weights={cell.variant.weights}"
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
    evaluations = sum(j.n_sampled * j.cell.score_evaluations for j in jobs if j.kind == "evaluate")
    passes = sum(
        3 * j.cell.train.iterations * j.cell.train.batch_size for j in jobs if j.kind == "train"
    )
    pending = [job for job in jobs if not job_is_done(job, context)]
    lines += [
        "",
        f"work: {evaluations:.3g} score evaluations in sampling, {passes:.3g} in training (a step "
        "counts three)",
        f"      {sum(job.flops for job in jobs):.3g} FLOPs in all, "
        f"{sum(job.flops for job in pending):.3g} of them to do",
        f"disk: about {disk_bytes(cells, jobs) / 2**20:.0f} MiB in all",
    ]
    return "\n".join(lines)


def _shared(cells: list[Cell], pick: Callable[[Cell], Stage]) -> dict[Stage, list[Cell]]:
    """Return the stages that ``pick`` gives, each with the cells that share it."""
    found: dict[Stage, list[Cell]] = {}
    for cell in cells:
        found.setdefault(pick(cell), []).append(cell)
    return found


def disk_bytes(cells: list[Cell], jobs: list[Job]) -> int:
    """Return an estimate of what the jobs write: snapshots, checkpoints, samples, dumps."""
    total = 0
    for job in jobs:
        cell = job.cell
        if job.kind == "train":
            weights = 4 * cell_parameters(cell)
            snapshots = len(cell.train.snapshot_iterations)
            # A checkpoint holds weights, average and Adam's two moments; three are kept, a fourth
            # is there while it replaces one.
            total += weights * (2 * snapshots + 4 * 4)
        elif job.kind == "evaluate":
            total += job.n_sampled * cell.data.dim * 2 + 4 * cell.n_dump * (cell.data.dim + 512)
    return total


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


def check_disk(cells: list[Cell], jobs: list[Job], context: Context) -> None:
    """Raise ValueError where the disk is too full for what is still to be written."""
    pending = [job for job in jobs if not job_is_done(job, context)]
    needed = disk_bytes(cells, pending)
    folder = context.out
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"--out {context.out}: {free / 2**20:.0f} MiB are free, about {needed / 2**20:.0f} MiB "
            "are needed; free some space or choose another --out"
        )


def job_state(job: Job, context: Context) -> tuple[str, str]:
    """Return (done | failed | diverged | running | planned, detail) of a job, from its files.

    The images of its dumps, which nothing is computed from, are not looked at.
    """
    if job_is_done(job, context, dumps=False):
        return "done", ""
    if (failure := read_failure(context.out, job.name)) is not None:
        return str(failure["kind"]), str(failure["message"])
    if (progress := read_progress(job, context)) is not None:
        age = time.time() - progress["updated"]
        if age < _STALE_S:
            return "running", f"{100 * progress['fraction']:.0f} %, {progress['text']}"
        return "planned", f"stopped at {100 * progress['fraction']:.0f} %; will go on from there"
    return "planned", ""


def read_progress(job: Job, context: Context) -> dict | None:
    """Return a job's last progress (fraction, text, updated), or None; a damaged file is none."""
    try:
        record = read_json(progress_path(context.out, job.name))
    except (FileNotFoundError, CorruptFile):
        return None
    numbers = ("fraction", "updated")
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        return None
    return record if all(isinstance(record.get(n), int | float) for n in numbers) else None


def describe_status(jobs: list[Job], context: Context) -> str:
    """Return one line per job: state, title, detail."""
    lines = []
    for job in jobs:
        state, detail = job_state(job, context)
        lines.append(f"{state.upper():<9} {job.title}" + (f": {detail}" if detail else ""))
    return "\n".join(lines)
