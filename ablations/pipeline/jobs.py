"""Jobs: the stages of a grid bundled into what one process runs, and where each of them stands."""

from dataclasses import dataclass
from functools import cached_property

from ablations.engine.context import Context
from ablations.engine.stages import Stage
from ablations.pipeline.cell import N_BETWEEN, N_PAIRS, Cell
from ablations.pipeline.dumps import dump_exists, dump_is_whole
from ablations.pipeline.flops import cell_forward_flops
from ablations.pipeline.naming import cell_file_name
from ablations.pipeline.selection import selected_iterations, selection_samples

#: How much slower than sampling a training step does its operations, in small batches on a CPU
#: (measured under the quick budget); weighs jobs against one another for order and progress.
_TRAINING_EFFORT = 2.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """Stages that one process runs in a row.

    ``kind`` is "train", "evaluate" or "baseline", of which a grid consists; "snapshot", the part of
    an evaluation that can begin while training goes on; or "interpolate" or "neighbours", which an
    evaluated cell can have besides, of the snapshot of ``iteration`` or else of the selected one.
    """

    kind: str
    cell: Cell  # for training, the first of the cells that share it
    needs: tuple[str, ...] = ()
    iteration: int | None = None  # of the snapshot, where it is known before the evaluation

    @cached_property
    def name(self) -> str:
        """A file name, unique in the grid."""
        if self.kind == "train":
            return f"train-{self.cell.train_stage().digest}"
        if self.kind == "baseline":
            return f"baseline-{self.cell.baseline_stage().digest}"
        name = f"{self.kind}-{cell_file_name(self.cell)}"
        return name if self.iteration is None else f"{name}-{self.iteration}"

    @property
    def title(self) -> str:
        """What a person reads in the log."""
        if self.kind == "train":
            network = "conditional" if self.cell.train.conditional else "unconditional"
            details = f"L={self.cell.train.n_levels} {self.cell.train.objective}"
            return f"train {self.cell.data.name} {network} {details} seed {self.cell.seed}"
        if self.kind == "baseline":
            return f"reference rows of {self.cell.data.name}"
        title = f"{self.kind} {self.cell.data.name} {self.cell.label} seed {self.cell.seed}"
        return title if self.iteration is None else f"{title} at iteration {self.iteration}"

    @property
    def flops(self) -> float:
        """Estimated work; a training step counts as three forward passes."""
        if self.kind in ("baseline", "neighbours"):
            return 0.0
        per_image = cell_forward_flops(self.cell)
        train = self.cell.train
        if self.kind == "train":
            return 3.0 * per_image * train.batch_size * train.iterations
        snapshots = {"evaluate": len(train.snapshot_iterations), "snapshot": 1}.get(self.kind, 0)
        losses = 2 * self.cell.n_loss * snapshots
        return float(per_image) * (self.cell.score_evaluations * self.n_sampled + losses)

    @property
    def effort(self) -> float:
        """FLOPs weighed by how fast they go."""
        return self.flops * (_TRAINING_EFFORT if self.kind == "train" else 1.0)

    @property
    def n_sampled(self) -> int:
        """Trajectories of an evaluation, if both denoise settings choose the same snapshot."""
        if self.kind == "interpolate":
            return N_PAIRS * (N_BETWEEN + 2)
        if self.kind == "snapshot":
            return self.cell.n_selection
        snapshots = len(self.cell.train.snapshot_iterations)
        return snapshots * self.cell.n_selection + self.cell.n_final - self.cell.n_selection


def plan_jobs(cells: list[Cell]) -> list[Job]:
    """Return the jobs of a grid, in an order that respects their needs.

    One training job for all cells that share it, one evaluation per cell, one set of reference rows
    per dataset and feature space.
    """
    trainings: dict[str, Job] = {}
    evaluations: dict[str, Job] = {}
    baselines: dict[str, Job] = {}
    for cell in cells:
        train = Job(kind="train", cell=cell)
        evaluate = Job(kind="evaluate", cell=cell, needs=(train.name,))
        baseline = Job(kind="baseline", cell=cell)
        trainings.setdefault(train.name, train)
        evaluations[evaluate.name] = evaluate
        baselines.setdefault(baseline.name, baseline)
    return [*trainings.values(), *evaluations.values(), *baselines.values()]


def snapshot_jobs(cells: list[Cell]) -> list[Job]:
    """Return a job for each snapshot of each cell, in the order in which training makes them.

    It finds the snapshot's distances and losses, which the cell's evaluation then has no need to.
    """
    jobs = [
        Job(
            kind="snapshot",
            cell=cell,
            iteration=iteration,
            needs=(Job(kind="train", cell=cell).name,),
        )
        for cell in cells
        for iteration in cell.train.snapshot_iterations
    ]
    return sorted(jobs, key=lambda job: job.iteration or 0)


def more_jobs(kind: str, cells: list[Cell], *, snapshot: str) -> list[Job]:
    """Return a job of one of the kinds beside the grid's for each cell; it needs the evaluation.

    ``snapshot`` is "last", the end of training, or "selected", the one of the smallest distance.
    """
    return [
        Job(
            kind=kind,
            cell=cell,
            needs=(Job(kind="evaluate", cell=cell).name,),
            iteration=cell.train.iterations if snapshot == "last" else None,
        )
        for cell in cells
    ]


def shown_snapshot(job: Job, chosen: dict[bool, int]) -> tuple[int, bool]:
    """Return the iteration that a job beside the grid's shows, and whether of its final samples.

    Of a snapshot that was not selected there are the samples of the selection.
    """
    return (chosen[True], True) if job.iteration is None else (job.iteration, False)


def job_is_done(job: Job, context: Context, *, dumps: bool = True) -> bool:
    """Return whether all of a job's results are there and intact.

    Features are not looked at: they are checked when something is computed from them, and they take
    ten times the room of the samples. ``dumps=False`` leaves out the images of the dumps too.
    """
    store = context.store
    if job.kind == "train":
        return store.result(job.cell.train_stage()) is not None
    if job.kind == "baseline":
        return store.result(job.cell.baseline_stage()) is not None
    if job.kind == "evaluate":
        # Looked for first, because they are written last and found without a digest.
        if not all(dump_exists(context.samples, job.cell, denoise=d) for d in (False, True)):
            return False
        if None in map(store.result, [*selection_samples(job.cell), *loss_stages(job.cell)]):
            return False
        if dumps and not all(
            dump_is_whole(context.samples, job.cell, denoise=d) for d in (False, True)
        ):
            return False
    if job.kind == "snapshot":
        assert job.iteration is not None
        distances = [
            job.cell.distance_stage(job.iteration, denoise=d, final=False) for d in (False, True)
        ]
        return None not in map(store.result, [*distances, job.cell.loss_stage(job.iteration)])
    chosen = selected_iterations(job.cell, store)
    return len(chosen) == 2 and None not in map(store.result, final_stages(job, chosen))


def loss_stages(cell: Cell) -> list[Stage]:
    """Return the stages of the losses on training and test images, of every snapshot."""
    return [cell.loss_stage(iteration) for iteration in cell.train.snapshot_iterations]


def final_stages(job: Job, chosen: dict[bool, int]) -> list[Stage]:
    """Return what a job makes of the snapshots that were chosen, by denoise setting."""
    cell = job.cell
    if job.kind in ("interpolate", "neighbours"):
        iteration, final = shown_snapshot(job, chosen)
        if job.kind == "interpolate":
            return [cell.interpolation_stage(iteration)]
        return [cell.neighbour_stage(iteration, denoise=True, final=final)]
    return [
        stage
        for denoise, iteration in chosen.items()
        for stage in (
            *cell.sample_stages(iteration, final=True)[1:],
            cell.distance_stage(iteration, denoise=denoise, final=True),
            cell.quality_stage(iteration, denoise=denoise),
        )
    ]
