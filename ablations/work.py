"""How a job runs its stages, and how it tells of its progress and its failure."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from ablations.cells import Cell
from ablations.drawing import Drawing, Report
from ablations.dumps import dump_samples
from ablations.failures import clear_failure, record_failure
from ablations.held_out import HeldOut
from ablations.jobs import (
    open_dataset,
    Context,
    Job,
    progress_path,
    selected_iterations,
    selection_samples,
    shown_snapshot,
)
from ablations.measuring import Measuring
from ablations.stages import FOLLOWED
from scorekit.distributed import RankDied, World, leave, process_group
from scorekit.files import atomic_write, write_json
from scorekit.machine import PeakMemory, conditions
from scorekit.training import Diverged, Stopped, Trainer, never, snapshot_path


class Progress:
    """Work done by one job, written to a small file that the launcher reads."""

    def __init__(
        self, path: Path, on_update: Callable[[], None] = lambda: None, *, write: bool = True
    ) -> None:
        self._path, self._on_update, self._write = path, on_update, write
        self._written = 0.0
        self._began: tuple[float, float] | None = None

    def __call__(self, fraction: float, text: str) -> None:
        """Report the fraction done and what is being done; written at most once a second."""
        now = time.monotonic()
        if self._write and now - self._written >= 1.0:
            self._written = now
            self._path.parent.mkdir(parents=True, exist_ok=True)
            updated = time.time()
            # What an earlier process did says nothing about this one's speed.
            self._began = self._began or (updated, fraction)
            record = dict(zip(("began", "began_fraction"), self._began, strict=True))
            write_json(
                self._path, record | {"fraction": fraction, "text": text, "updated": updated}
            )
            self._on_update()


def run_job(
    job: Job,
    context: Context,
    on_update: Callable[[], None] = lambda: None,
    *,
    stop: Callable[[], bool] = never,
    rank_died: Callable[[str], NoReturn] = leave,
) -> None:
    """Run a job's stages; a failure is recorded beside the job's progress, then raised.

    Where ``stop`` says True, Stopped is raised at the next iteration of training, noise scale of
    sampling or measurement, which is no failure: run again, the job goes on from its files.

    Where ``context.world`` has several ranks, each calls this: they train and evaluate together,
    and rank 0 does alone what else there is. Where one dies, each of the others notes it and calls
    ``rank_died`` in a thread of its own, which ends its process.
    """
    torch.set_num_threads(context.threads)
    world = context.world
    if job.kind not in ("train", "snapshot", "evaluate"):
        if not world.is_main:
            return
        context = replace(context, world=World())
    if world.is_main:
        clear_failure(context.out, job.name)
    progress = Progress(progress_path(context.out, job.name), on_update, write=world.is_main)

    def lost(message: str) -> None:
        try:
            record_failure(context.out, job.name, RankDied(message))
        finally:
            rank_died(message)

    group = process_group(context.world, context.device, lost=lost, together=(Stopped, Diverged))
    with _recording(job, context), group, _recording(job, context):
        Worker(context, progress, stop).run(job)


@contextmanager
def _recording(job: Job, context: Context) -> Iterator[None]:
    """Record what ends a job; of what ends all of its ranks alike, rank 0 does so.

    Within the group of the ranks a rank tells of its end before the others can notice it, and
    outside of it why the ranks did not meet.
    """
    try:
        yield
    except Stopped:
        raise
    except Exception as error:
        if context.world.is_main or not isinstance(error, Diverged):
            record_failure(context.out, job.name, error)
        raise


class Worker:
    """The stages of jobs, made as they are needed; ``progress`` gets (fraction, text)."""

    def __init__(
        self, context: Context, progress: Report, stop: Callable[[], bool] = never
    ) -> None:
        self.context, self.progress, self.store = context, progress, context.store
        self.stop = stop
        self.drawing = Drawing(context, progress, self.train, stop)
        self.measuring = Measuring(context, self.drawing)
        self.held_out = HeldOut(context, self.drawing)

    def run(self, job: Job) -> None:
        kinds: dict[str, Callable[[], None]] = {
            "train": lambda: self.train(job.cell),
            "baseline": lambda: self.measuring.baseline(job.cell),
            "snapshot": lambda: self.snapshot(job, job.iteration),
            "evaluate": lambda: self.evaluate(job),
            "interpolate": lambda: self.interpolate(job),
            "neighbours": lambda: self.neighbours(job),
        }
        kinds[job.kind]()

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
                "n_parameters": trainer.network.n_parameters(),
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

    def snapshot(self, job: Job, iteration: int | None, before: int = 0) -> None:
        assert iteration is not None
        for denoise in (False, True):
            self.measuring.distance(job, iteration, denoise=denoise, final=False, before=before)
        self.check_stop()
        self.held_out.loss(job.cell, iteration)

    def evaluate(self, job: Job) -> None:
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

    def interpolate(self, job: Job) -> None:
        iteration, _ = shown_snapshot(job, selected_iterations(job.cell, self.store))
        self.drawing.interpolate(job, job.cell.interpolation_stage(iteration))

    def neighbours(self, job: Job) -> None:
        iteration, final = shown_snapshot(job, selected_iterations(job.cell, self.store))
        self.measuring.neighbours(job, iteration, denoise=True, final=final)

    def checkpoint_digest(self, cell: Cell, iteration: int) -> str:
        directory = self.store.directory(cell.train_stage())
        path = snapshot_path(directory, iteration)
        return self.store.checksum(cell.train_stage(), path.name)
