"""The jobs of a grid of score networks: trainings, evaluations, and what both consist of."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from ablations.engine.context import Context
from ablations.engine.job import Job, Work
from ablations.engine.stages import Stage
from ablations.pipeline.cell import N_BETWEEN, N_PAIRS, Cell, cell_file_name
from ablations.pipeline.dumps import dump_exists, dump_is_whole
from ablations.pipeline.evaluation import Worker
from ablations.pipeline.flops import cell_forward_flops, cell_parameters
from ablations.pipeline.selection import loss_stages, selected_iterations, selection_samples
from scorekit.checkpoints.store import snapshot_path

#: How much slower than sampling a training step does its operations, in small batches on a CPU
#: (measured under the quick budget); weighs jobs against one another for order and progress.
_TRAINING_EFFORT = 2.0


@dataclass(frozen=True, kw_only=True)
class CellJob(Job):
    """A job of one cell; of those that share a training or reference rows, the first."""

    cell: Cell

    @cached_property
    def name(self) -> str:
        return f"{self.kind}-{cell_file_name(self.cell)}"

    @property
    def title(self) -> str:
        return f"{self.kind} {self.cell.data.name} {self.cell.label} seed {self.cell.seed}"

    @property
    def n_trained(self) -> int:
        """Images that training steps are taken of, each as often as it is."""
        return 0

    @property
    def n_sampled(self) -> int:
        """Trajectories that are drawn, if both denoise settings choose the same snapshot."""
        return 0

    @property
    def n_losses(self) -> int:
        """Images whose loss is taken, on both splits."""
        return 0

    @property
    def flops(self) -> float:
        """Estimated work; a training step counts as three forward passes."""
        sampled = self.cell.score_evaluations * self.n_sampled
        images = 3 * self.n_trained + sampled + self.n_losses
        return float(cell_forward_flops(self.cell)) * images if images else 0.0

    @property
    def effort(self) -> float:
        """FLOPs weighed by how fast they go."""
        return self.flops * (_TRAINING_EFFORT if self.n_trained else 1.0)

    def run(self, work: Work) -> None:
        self.run_by(Worker(work.context, work.progress, work.stop))

    @abstractmethod
    def run_by(self, worker: Worker) -> None:
        """Let a worker make the job's stages."""


@dataclass(frozen=True, kw_only=True)
class TrainJob(CellJob):
    """The training that cells share."""

    kind: ClassVar[str] = "train"
    resources: ClassVar[str] = "train"
    together: ClassVar[bool] = True
    lets_start: ClassVar[bool] = True

    @cached_property
    def name(self) -> str:
        return f"train-{self.cell.train_stage().digest}"

    @property
    def title(self) -> str:
        train = self.cell.train
        if self.cell.network_sha256:
            return f"read {Path(self.cell.network_path).name} for {self.cell.data.name}"
        network = "conditional" if train.conditional else "unconditional"
        details = f"L={train.n_levels} {train.objective}"
        return f"train {self.cell.data.name} {network} {details} seed {self.cell.seed}"

    @property
    def n_trained(self) -> int:
        train = self.cell.train
        return 0 if self.cell.network_sha256 else train.batch_size * train.iterations

    @property
    def disk_bytes(self) -> int:
        # A checkpoint holds weights, average and Adam's two moments; three are kept, a fourth is
        # there while it replaces one.
        snapshots = len(self.cell.train.snapshot_iterations)
        return 4 * cell_parameters(self.cell) * (2 * snapshots + 4 * 4)

    def is_done(self, context: Context, *, thorough: bool = True) -> bool:
        return context.store.result(self.cell.train_stage()) is not None

    def run_by(self, worker: Worker) -> None:
        (worker.read if self.cell.network_sha256 else worker.train)(self.cell)


@dataclass(frozen=True, kw_only=True)
class BaselineJob(CellJob):
    """The reference rows of a data set in a feature space: real images and a Gaussian's."""

    kind: ClassVar[str] = "baseline"

    @cached_property
    def name(self) -> str:
        return f"baseline-{self.cell.baseline_stage().digest}"

    @property
    def title(self) -> str:
        return f"reference rows of {self.cell.data.name}"

    def is_done(self, context: Context, *, thorough: bool = True) -> bool:
        return context.store.result(self.cell.baseline_stage()) is not None

    def run_by(self, worker: Worker) -> None:
        worker.measuring.baseline(self.cell)


@dataclass(frozen=True, kw_only=True)
class SnapshotJob(CellJob):
    """The distances and losses of one snapshot, which can be found while training goes on."""

    kind: ClassVar[str] = "snapshot"
    together: ClassVar[bool] = True
    iteration: int

    @cached_property
    def name(self) -> str:
        return f"snapshot-{cell_file_name(self.cell)}-{self.iteration}"

    @property
    def title(self) -> str:
        return f"{super().title} at iteration {self.iteration}"

    @property
    def n_sampled(self) -> int:
        return self.cell.n_selection

    @property
    def n_losses(self) -> int:
        return 2 * self.cell.n_loss

    @property
    def part_of(self) -> str:
        return EvaluateJob(cell=self.cell).name

    def starts_with(self, context: Context) -> Path:
        return snapshot_path(context.store.directory(self.cell.train_stage()), self.iteration)

    def is_done(self, context: Context, *, thorough: bool = True) -> bool:
        distances = [
            self.cell.distance_stage(self.iteration, denoise=d, final=False) for d in (False, True)
        ]
        stages = [*distances, self.cell.loss_stage(self.iteration)]
        return None not in map(context.store.result, stages)

    def run_by(self, worker: Worker) -> None:
        worker.snapshot(self, self.iteration)


@dataclass(frozen=True, kw_only=True)
class EvaluateJob(CellJob):
    """All samples and measurements of a cell: of each snapshot, then of the selected ones."""

    kind: ClassVar[str] = "evaluate"
    together: ClassVar[bool] = True

    @property
    def n_sampled(self) -> int:
        snapshots = len(self.cell.train.snapshot_iterations)
        return snapshots * self.cell.n_selection + self.cell.n_final - self.cell.n_selection

    @property
    def n_losses(self) -> int:
        return 2 * self.cell.n_loss * len(self.cell.train.snapshot_iterations)

    @property
    def disk_bytes(self) -> int:
        dim = self.cell.data.dim
        return self.n_sampled * dim * 2 + 4 * self.cell.n_dump * (dim + 512)

    def is_done(self, context: Context, *, thorough: bool = True) -> bool:
        """Return whether it is.

        Features are not looked at: they are checked when something is computed from them, and they
        take ten times the room of the samples. Without ``thorough`` nor are the dumps' images.
        """
        cell, store = self.cell, context.store
        # Looked for first, because they are written last and found without a digest.
        if not all(dump_exists(context.samples, cell, denoise=d) for d in (False, True)):
            return False
        if None in map(store.result, [*selection_samples(cell), *loss_stages(cell)]):
            return False
        if thorough and not all(
            dump_is_whole(context.samples, cell, denoise=d) for d in (False, True)
        ):
            return False
        chosen = selected_iterations(cell, store)
        return len(chosen) == 2 and None not in map(store.result, _final_stages(cell, chosen))

    def run_by(self, worker: Worker) -> None:
        worker.evaluate(self)


@dataclass(frozen=True, kw_only=True)
class ShownJob(CellJob):
    """What an evaluated cell can have besides, of the snapshot of ``iteration``; None: selected."""

    iteration: int | None

    @cached_property
    def name(self) -> str:
        name = f"{self.kind}-{cell_file_name(self.cell)}"
        return name if self.iteration is None else f"{name}-{self.iteration}"

    @property
    def title(self) -> str:
        title = super().title
        return title if self.iteration is None else f"{title} at iteration {self.iteration}"

    def shown(self, chosen: dict[bool, int]) -> tuple[int, bool]:
        """Return the iteration that is shown, and whether of its final samples.

        Of a snapshot that was not selected there are the samples of the selection.
        """
        return (chosen[True], True) if self.iteration is None else (self.iteration, False)

    @abstractmethod
    def stage(self, iteration: int, *, final: bool) -> Stage:
        """Return the stage that is made of a snapshot."""

    def is_done(self, context: Context, *, thorough: bool = True) -> bool:
        chosen = selected_iterations(self.cell, context.store)
        if len(chosen) != 2:
            return False
        iteration, final = self.shown(chosen)
        return context.store.result(self.stage(iteration, final=final)) is not None


@dataclass(frozen=True, kw_only=True)
class InterpolateJob(ShownJob):
    """Pairs of samples, and what lies between them."""

    kind: ClassVar[str] = "interpolate"

    @property
    def n_sampled(self) -> int:
        return N_PAIRS * (N_BETWEEN + 2)

    def stage(self, iteration: int, *, final: bool) -> Stage:
        return self.cell.interpolation_stage(iteration)

    def run_by(self, worker: Worker) -> None:
        iteration, final = self.shown(selected_iterations(self.cell, worker.store))
        worker.drawing.interpolate(self, self.stage(iteration, final=final))


@dataclass(frozen=True, kw_only=True)
class NeighboursJob(ShownJob):
    """The nearest training images of samples."""

    kind: ClassVar[str] = "neighbours"

    @property
    def n_sampled(self) -> int:
        # Drawn already, unless they were lost.
        return EvaluateJob(cell=self.cell).n_sampled

    @property
    def flops(self) -> float:
        return 0.0

    def stage(self, iteration: int, *, final: bool) -> Stage:
        return self.cell.neighbour_stage(iteration, denoise=True, final=final)

    def run_by(self, worker: Worker) -> None:
        iteration, final = self.shown(selected_iterations(self.cell, worker.store))
        worker.measuring.neighbours(self, iteration, denoise=True, final=final)


def grid_jobs(cells: Sequence[Cell]) -> list[CellJob]:
    """Return the jobs of a grid, in an order that respects their needs.

    One training for all cells that share it, one set of reference rows per data set and feature
    space, a part for each snapshot of each cell, in the order in which training makes them, and one
    evaluation per cell.
    """
    trainings: dict[str, TrainJob] = {}
    baselines: dict[str, BaselineJob] = {}
    snapshots: list[SnapshotJob] = []
    evaluations: list[EvaluateJob] = []
    for cell in cells:
        train, baseline = TrainJob(cell=cell), BaselineJob(cell=cell)
        trainings.setdefault(train.name, train)
        baselines.setdefault(baseline.name, baseline)
        parts = [
            SnapshotJob(cell=cell, iteration=iteration, needs=(train.name,))
            for iteration in cell.train.snapshot_iterations
        ]
        snapshots += parts
        after = tuple(part.name for part in parts)
        evaluations.append(EvaluateJob(cell=cell, needs=(train.name,), after=after))
    snapshots.sort(key=lambda job: job.iteration)
    return [*trainings.values(), *snapshots, *evaluations, *baselines.values()]


def shown_jobs(kind: type[ShownJob], cells: Sequence[Cell], *, snapshot: str) -> list[ShownJob]:
    """Return a job of a kind beside the grid's for each cell; it needs the evaluation.

    ``snapshot`` is "last", the end of training, or "selected", the one of the smallest distance.
    """
    return [
        kind(
            cell=cell,
            needs=(EvaluateJob(cell=cell).name,),
            iteration=cell.train.iterations if snapshot == "last" else None,
        )
        for cell in cells
    ]


def _final_stages(cell: Cell, chosen: dict[bool, int]) -> list[Stage]:
    """Return what an evaluation makes of the snapshots that were chosen, by denoise setting."""
    return [
        stage
        for denoise, iteration in chosen.items()
        for stage in (
            *cell.sample_stages(iteration, final=True)[1:],
            cell.distance_stage(iteration, denoise=denoise, final=True),
            cell.quality_stage(iteration, denoise=denoise),
        )
    ]
