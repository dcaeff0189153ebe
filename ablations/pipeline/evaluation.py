"""What the jobs of cells are made of: training, measuring a snapshot, evaluating a cell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ablations.engine.context import Context
from ablations.engine.stages import FOLLOWED
from ablations.pipeline.cell import Cell
from ablations.pipeline.data import open_dataset
from ablations.pipeline.dumps import dump_samples
from ablations.pipeline.flops import cell_parameters
from ablations.pipeline.held_out import HeldOut
from ablations.pipeline.measuring import Measuring
from ablations.pipeline.sampling import Drawing, Report, Sampled
from ablations.pipeline.selection import selected_iterations, selection_samples
from scorekit.checkpoints.store import snapshot_path
from scorekit.checkpoints.tensors import save_tensors
from scorekit.files import atomic_write
from scorekit.models.network_files import read_network_file
from scorekit.runtime.interruption import Stopped, never
from scorekit.runtime.machine import PeakMemory, conditions
from scorekit.training.trainer import Trainer


class Worker:
    """Makes the stages of one job as they are needed; ``progress`` gets (fraction, text)."""

    def __init__(
        self, context: Context, progress: Report, stop: Callable[[], bool] = never
    ) -> None:
        self.context, self.progress, self.store = context, progress, context.store
        self.stop = stop
        self.drawing = Drawing(context, progress, self._weights_of, stop)
        self.measuring = Measuring(context, self.drawing)
        self.held_out = HeldOut(context, self.drawing)

    def train(self, cell: Cell) -> None:
        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            dataset = open_dataset(self.context, cell.data)
            peak = PeakMemory(self.context.device)
            trainer = Trainer(
                cell.train,
                dataset,
                directory,
                device=self.context.device,
                compile=self.context.compile,
                world=self.context.world,
                accumulation=self.context.accumulation,
            )
            total = cell.train.iterations
            trainer.run(
                lambda i, loss: self.progress(i / total, f"iteration {i}/{total}, loss {loss:.4g}"),
                stop=self.stop,
            )
            if not self.context.world.is_main:
                return FOLLOWED
            losses = directory / "losses.npz"
            test = np.array(trainer.test_losses, dtype=np.float64).reshape(-1, 2)
            atomic_write(
                losses,
                lambda file: np.savez(
                    file,
                    train=np.array(trainer.losses),
                    test=test[:, 1],
                    test_iteration=test[:, 0].astype(np.int64),
                ),
            )
            snapshots = [snapshot_path(directory, i) for i in cell.train.snapshot_iterations]
            result = {
                "training_s": trainer.elapsed_s,
                "compile_s": trainer.compile_s,
                "snapshot_s": [trainer.snapshot_s.get(i) for i in cell.train.snapshot_iterations],
                "n_parameters": sum(p.numel() for p in trainer.network.parameters()),
                "conditions": conditions(
                    self.context.device,
                    threads=self.context.threads,
                    compile=self.context.compile,
                    peak_memory=peak.bytes(),
                    processes=self.context.world.size,
                ),
            }
            return result, [losses, *snapshots]

        self.store.run(cell.train_stage(), execute)

    def read(self, cell: Cell) -> None:
        """Make the snapshot of a cell that trains none, of the file that it names."""

        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            if not self.context.world.is_main:
                return FOLLOWED
            found, states = read_network_file(cell.network_path)
            if found.sha256 != cell.network_sha256:
                raise ValueError(f"{cell.network_path} changed since the grid was planned")
            snapshot = snapshot_path(directory, cell.train.iterations)
            save_tensors(snapshot, states)
            result = {
                "training_s": None,  # somewhere else
                "compile_s": 0.0,
                "snapshot_s": [None],
                "n_parameters": cell_parameters(cell),
                "conditions": conditions(
                    self.context.device,
                    threads=self.context.threads,
                    compile=False,
                    peak_memory=None,
                ),
            }
            return result, [snapshot]

        self.store.run(cell.train_stage(), execute)

    def _weights_of(self, cell: Cell) -> None:
        (self.read if cell.network_sha256 else self.train)(cell)

    def snapshot(self, job: Sampled, iteration: int, before: int = 0) -> None:
        """Measure a snapshot; ``before`` of the job's trajectories came earlier."""
        for denoise in (False, True):
            self.measuring.distance(job, iteration, denoise=denoise, final=False, before=before)
        self.check_stop()
        self.held_out.loss(job.cell, iteration)

    def evaluate(self, job: Sampled) -> None:
        cell = job.cell
        done = 0
        for iteration in cell.train.snapshot_iterations:
            self.check_stop()
            self.snapshot(job, iteration, done)
            done += cell.n_selection
        # Distances outlive the samples that they were taken of, and people look at both.
        for stage in selection_samples(cell):
            self.drawing.sample(job, stage, done)
        # Rank 0's choice: a file that is damaged just now must not part the ranks.
        chosen = self.context.world.broadcast(selected_iterations(cell, self.store))
        for denoise, iteration in chosen.items():
            self.measuring.distance(job, iteration, denoise=denoise, final=True, before=done)
            self.check_stop()
            self.measuring.quality(job, iteration, denoise=denoise)
            fake = self.drawing.samples(job, iteration, denoise=denoise)
            if not self.context.world.is_main:
                continue
            dump_samples(
                cell,
                denoise=denoise,
                checkpoint=self.checkpoint_digest(cell, iteration),
                iteration=iteration,
                fake=fake[: cell.n_dump],
                real=open_dataset(self.context, cell.data).train,
                directory=self.context.samples,
            )

    def check_stop(self) -> None:
        (stopping,) = self.context.world.any(self.stop())
        if stopping:
            raise Stopped("the evaluation stopped between two measurements and continues there")

    def checkpoint_digest(self, cell: Cell, iteration: int) -> str:
        directory = self.store.directory(cell.train_stage())
        path = snapshot_path(directory, iteration)
        return self.store.checksum(cell.train_stage(), path.name)
