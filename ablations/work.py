"""How a job runs its stages, and how it tells of its progress and its failure."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ablations.cells import Cell
from ablations.drawing import Drawing, Report
from ablations.dumps import dump_samples
from ablations.failures import failure_path, record_failure
from ablations.jobs import Context, Job, progress_path, selected_iterations
from ablations.measuring import Measuring
from scorekit.files import atomic_write, write_json
from scorekit.machine import conditions
from scorekit.training import Trainer, snapshot_path


class Progress:
    """Work done by one job, written to a small file that the launcher reads."""

    def __init__(self, path: Path, on_update: Callable[[], None] = lambda: None) -> None:
        self._path, self._on_update = path, on_update
        self._written = 0.0

    def __call__(self, fraction: float, text: str) -> None:
        """Report the fraction done and what is being done; written at most once a second."""
        now = time.monotonic()
        if now - self._written >= 1.0:
            self._written = now
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {"fraction": fraction, "text": text, "updated": time.time()})
            self._on_update()


def run_job(job: Job, context: Context, on_update: Callable[[], None] = lambda: None) -> None:
    """Run a job's stages; a failure is recorded beside the job's progress, then raised."""
    torch.set_num_threads(context.threads)
    failure_path(context.out, job.name).unlink(missing_ok=True)
    progress = Progress(progress_path(context.out, job.name), on_update)
    try:
        Worker(context, progress).run(job)
    except Exception as error:
        record_failure(context.out, job.name, error)
        raise


class Worker:
    """The stages of jobs, made as they are needed; ``progress`` gets (fraction, text)."""

    def __init__(self, context: Context, progress: Report) -> None:
        self.context, self.progress, self.store = context, progress, context.store
        self.drawing = Drawing(context, progress, self.train)
        self.measuring = Measuring(context, self.drawing)

    def run(self, job: Job) -> None:
        kinds: dict[str, Callable[[], None]] = {
            "train": lambda: self.train(job.cell),
            "baseline": lambda: self.measuring.baseline(job.cell),
            "evaluate": lambda: self.evaluate(job),
            "interpolate": lambda: self.interpolate(job),
            "neighbours": lambda: self.neighbours(job),
        }
        kinds[job.kind]()

    def train(self, cell: Cell) -> None:
        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            dataset = self.context.dataset(cell.data)
            trainer = Trainer(
                cell.train,
                dataset,
                directory,
                device=self.context.device,
                compile=self.context.compile,
            )
            total = cell.train.iterations
            trainer.run(
                lambda i, loss: self.progress(i / total, f"iteration {i}/{total}, loss {loss:.4g}")
            )
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
                "n_parameters": trainer.network.n_parameters(),
                "conditions": conditions(
                    self.context.device,
                    threads=self.context.threads,
                    compile=self.context.compile,
                ),
            }
            return result, [losses, *snapshots]

        self.store.run(cell.train_stage(), execute)

    def evaluate(self, job: Job) -> None:
        cell = job.cell
        done = 0
        for iteration in cell.train.snapshot_iterations:
            for denoise in (False, True):
                self.measuring.distance(job, iteration, denoise=denoise, final=False, before=done)
            done += cell.n_selection
        for denoise, iteration in selected_iterations(cell, self.store).items():
            self.measuring.distance(job, iteration, denoise=denoise, final=True, before=done)
            self.measuring.quality(job, iteration, denoise=denoise)
            dump_samples(
                cell,
                denoise=denoise,
                checkpoint=self.checkpoint_digest(cell, iteration),
                iteration=iteration,
                fake=self.drawing.samples(job, iteration, denoise=denoise)[: cell.n_dump],
                real=self.context.dataset(cell.data).train,
                directory=self.context.samples,
            )

    def interpolate(self, job: Job) -> None:
        iteration = selected_iterations(job.cell, self.store)[True]
        self.drawing.interpolate(job, job.cell.interpolation_stage(iteration))

    def neighbours(self, job: Job) -> None:
        iteration = selected_iterations(job.cell, self.store)[True]
        self.measuring.neighbours(job, iteration, denoise=True)

    def checkpoint_digest(self, cell: Cell, iteration: int) -> str:
        directory = self.store.directory(cell.train_stage())
        path = snapshot_path(directory, iteration)
        return self.store.checksum(cell.train_stage(), path.name)
