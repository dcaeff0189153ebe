"""What each kind of stage does, and how a job runs its stages."""

import logging
import math
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ablations.cells import Cell
from ablations.dumps import dump_samples
from ablations.jobs import (
    Context,
    Job,
    failure_path,
    progress_path,
    sample_file,
    selected_iterations,
)
from ablations.stages import Stage, StageStore
from scorekit import metrics
from scorekit.checkpoints import load_tensors, save_tensors
from scorekit.compilation import autocast, compile_seconds, precision_context
from scorekit.data import to_uint8
from scorekit.files import CorruptFile, atomic_write, set_aside, write_json
from scorekit.machine import cpu_name
from scorekit.networks import ScoreNetwork
from scorekit.samplers import AnnealedLangevin
from scorekit.training import Diverged, Trainer, build_network, snapshot_path

_log = logging.getLogger("scorekit")


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
    failure = failure_path(context.out, job.name)
    failure.unlink(missing_ok=True)
    progress = Progress(progress_path(context.out, job.name), on_update)
    try:
        _Worker(context, progress).run(job)
    except Exception as error:
        failure.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            failure,
            {
                "kind": "diverged" if isinstance(error, Diverged) else "failed",
                "message": str(error) or type(error).__name__,
                "traceback": traceback.format_exc(),
                "when": time.time(),
            },
        )
        raise


@dataclass
class _Worker:
    context: Context
    progress: Progress
    _sampler: AnnealedLangevin | None = None
    _network: ScoreNetwork = field(init=False)

    @property
    def store(self) -> StageStore:
        return self.context.store

    def run(self, job: Job) -> None:
        if job.kind == "train":
            self.train(job.cell)
        elif job.kind == "baseline":
            self.baseline(job.cell)
        else:
            self.evaluate(job)

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
                "n_parameters": trainer.network.n_parameters(),
                "conditions": self.conditions(),
            }
            return result, [losses, *snapshots]

        self.store.run(cell.train_stage(), execute)

    def evaluate(self, job: Job) -> None:
        cell = job.cell
        done = 0
        for iteration in cell.train.snapshot_iterations:
            for denoise in (False, True):
                self.distance(job, iteration, denoise=denoise, final=False, before=done)
            done += cell.n_selection
        for denoise, iteration in selected_iterations(cell, self.store).items():
            self.distance(job, iteration, denoise=denoise, final=True, before=done)
            dump_samples(
                cell,
                denoise=denoise,
                checkpoint=self.checkpoint_digest(cell, iteration),
                iteration=iteration,
                fake=self.samples(job, iteration, denoise=denoise)[: cell.n_dump],
                real=self.context.dataset(cell.data).train,
                directory=self.context.samples,
            )

    def checkpoint_digest(self, cell: Cell, iteration: int) -> str:
        directory = self.store.directory(cell.train_stage())
        path = snapshot_path(directory, iteration)
        return self.store.checksum(cell.train_stage(), path.name)

    def samples(self, job: Job, iteration: int, *, denoise: bool) -> np.ndarray:
        parts = []
        for stage in job.cell.sample_stages(iteration, final=True):
            self.sample(job, stage, job.n_sampled)
            path = self.store.directory(stage) / sample_file(denoise)
            parts.append(np.load(path, mmap_mode="r"))
        return np.concatenate(parts)

    def sample(self, job: Job, stage: Stage, before: int) -> None:
        cell = job.cell

        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            self.train(cell)
            return self._sample(job, stage, directory, before)

        self.store.run(stage, execute)
        # Only now: a kill before the result was written would have lost them.
        for chunk in self.store.directory(stage).glob("chunk-*.pt"):
            chunk.unlink(missing_ok=True)

    def _sample(
        self, job: Job, stage: Stage, directory: Path, before: int
    ) -> tuple[dict[str, Any], list[Path]]:
        cell, settings, device = job.cell, stage.settings, self.context.device
        path = snapshot_path(self.store.directory(cell.train_stage()), settings["iteration"])
        sampler = self.sampler(cell, path)
        size = self.context.sampling_batch
        start, stop = settings["start"], settings["stop"]
        batches = []
        for first in range(start, stop, size):
            last = min(first + size, stop)
            chunk = directory / f"chunk-{first}-{last}.pt"
            # The batch keeps its size at the end, so that one compiled graph serves all.
            index = torch.arange(first, first + size, device=device).clamp(max=stop - 1)

            def report(level: int, first: int = first, last: int = last) -> None:
                share = first - start + (last - first) * (level + 1) / cell.train.n_levels
                text = f"snapshot {settings['iteration']}, samples {first}-{last} of {stop}"
                self.progress((before + share) / job.n_sampled, text)

            batch = _read_chunk(chunk)
            if batch is None:
                began, compiled_before = time.monotonic(), compile_seconds()
                precision = settings["precision"]
                with (
                    torch.inference_mode(),  # a tenth faster than no_grad for small networks
                    precision_context(precision),
                    autocast(precision, device),
                ):
                    drawn = sampler.sample(index, tuple(settings["shape"]), progress=report)
                    batch = {
                        "last": to_uint8(drawn.last[: last - first].cpu()),
                        "denoised": to_uint8(drawn.denoised[: last - first].cpu()),
                    }
                compiling = compile_seconds() - compiled_before
                batch |= {
                    "seconds": time.monotonic() - began - compiling,
                    "compile_s": compiling,
                }
                save_tensors(chunk, batch)
            batches.append(batch)
        files = []
        for denoise in (False, True):
            files.append(directory / sample_file(denoise))
            key = "denoised" if denoise else "last"
            _save_array(files[-1], torch.cat([batch[key] for batch in batches]).numpy())
        result = {
            "sampling_s": sum(batch["seconds"] for batch in batches),
            "compile_s": sum(batch["compile_s"] for batch in batches),
            "n": stop - start,
            "score_evaluations_per_sample": sampler.score_evaluations,
            "conditions": self.conditions(),
        }
        return result, files

    def sampler(self, cell: Cell, snapshot: Path) -> AnnealedLangevin:
        """Return the cell's sampler with the weights of a snapshot.

        All snapshots of a job are loaded into one network, which is compiled once.
        """
        if self._sampler is None:
            device = self.context.device
            network = build_network(cell.train, cell.data.channels).eval().requires_grad_(False)
            self._network = network.to(device).to(memory_format=torch.channels_last)
            self._sampler = AnnealedLangevin(
                self._network if self._network.conditional else self._network.features,
                self._network.sigmas,
                step_size=cell.step_size,
                n_steps_each=cell.n_steps_each,
                seed=cell.seed,
                times_sigma=not self._network.conditional,
                compile=self.context.compile,
            )
        self._network.load_state_dict(load_tensors(snapshot)[cell.variant.weights])
        return self._sampler

    def features(self, job: Job, stage: Stage, before: int) -> np.ndarray:
        (sample,) = stage.needs

        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            self.sample(job, sample, before)
            name = sample_file(stage.settings["denoise"])
            images = np.load(self.store.directory(sample) / name)
            features = self.extract(images, stage.settings["extractor"])
            path = directory / "features.npy"
            _save_array(path, features)
            return {"n": len(features)}, [path]

        self.store.run(stage, execute)
        return np.load(self.store.directory(stage) / "features.npy")

    def distance(
        self, job: Job, iteration: int, *, denoise: bool, final: bool, before: int
    ) -> None:
        cell = job.cell
        stage = cell.distance_stage(iteration, denoise=denoise, final=final)

        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            reference = self.reference(cell)
            parts = []
            offset = before - cell.n_selection if final else before
            for need in stage.needs[1:]:
                parts.append(self.features(job, need, offset))
                offset += len(parts[-1])
            statistics = metrics.feature_statistics(np.concatenate(parts))
            result = {
                "distance": metrics.frechet_distance(statistics, reference),
                "n": statistics.n,
                "n_reference": reference.n,
            }
            if not math.isfinite(result["distance"]):
                raise ValueError(f"the distance of {cell.name} at {iteration} is not finite")
            return result, []

        self.store.run(stage, execute)

    def reference(self, cell: Cell) -> metrics.FeatureStatistics:
        stage = cell.reference_stage()

        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            dataset = self.context.dataset(cell.data)
            images = dataset.train if cell.reference == "train" else dataset.test
            statistics = metrics.feature_statistics(self.extract(images, cell.data.extractor))
            path = directory / "statistics.npz"
            atomic_write(
                path,
                lambda file: np.savez(
                    file, mean=statistics.mean, covariance=statistics.covariance, n=statistics.n
                ),
            )
            return {"n": statistics.n}, [path]

        self.store.run(stage, execute)
        with np.load(self.store.directory(stage) / "statistics.npz") as file:
            return metrics.FeatureStatistics(
                mean=file["mean"], covariance=file["covariance"], n=int(file["n"])
            )

    def baseline(self, cell: Cell) -> None:
        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            dataset = self.context.dataset(cell.data)
            reference = self.reference(cell)
            held_out = dataset.test if cell.reference == "train" else dataset.train
            rows = {
                "uniform noise": metrics.uniform_noise_samples(
                    dataset.train.shape[1:], cell.n_final, seed=0
                ),
                "Gaussian fitted to the pixels": metrics.pixel_gaussian_samples(
                    dataset.train, cell.n_final, seed=0
                ),
                "held-out real images": np.array(held_out[: cell.n_final]),
            }
            result = {}
            for name, images in rows.items():
                features = self.extract(images, cell.data.extractor)
                statistics = metrics.feature_statistics(features)
                result[name] = {
                    "distance": metrics.frechet_distance(statistics, reference),
                    "n": statistics.n,
                    "n_reference": reference.n,
                }
            return result, []

        self.store.run(cell.baseline_stage(), execute)

    def extract(self, images: np.ndarray, extractor: str) -> np.ndarray:
        # Imported here: torch-fidelity costs seconds and memory that training has no use for.
        from scorekit.features import extract_features

        return extract_features(
            images,
            extractor,
            device=self.context.device,
            weights_path=self.context.inception_weights,
        )

    def conditions(self) -> dict[str, Any]:
        """Software and hardware of a measurement, and its process's peak memory."""
        cuda = self.context.device.startswith("cuda")
        if cuda:
            device = torch.cuda.get_device_name(self.context.device)
            peak = torch.cuda.max_memory_allocated(self.context.device)
        else:
            device = f"{cpu_name()}, {self.context.threads} thread(s)"
            # Kilobytes, except on macOS, which counts bytes.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak *= 1 if sys.platform == "darwin" else 1024
        return {
            "device": device,
            "peak_memory_bytes": int(peak),
            "compile": self.context.compile,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }


def _save_array(path: Path, array: np.ndarray) -> None:
    atomic_write(path, lambda file: np.save(file, array))


def _read_chunk(path: Path) -> dict[str, Any] | None:
    try:
        return load_tensors(path)
    except FileNotFoundError:
        return None
    except CorruptFile as error:
        _log.warning("%s; set aside as %s", error, set_aside(path).name)
        return None
