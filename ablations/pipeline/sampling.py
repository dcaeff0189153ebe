"""Drawing samples: trajectories in batches that survive a kill, and what lies between samples."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ablations.engine.context import Context
from ablations.engine.stages import FOLLOWED, Stage
from ablations.pipeline.cell import Cell
from ablations.pipeline.selection import sample_file
from scorekit.checkpoints.store import snapshot_path
from scorekit.checkpoints.tensors import find_tensors, save_tensors
from scorekit.data.pixels import to_uint8
from scorekit.files import load_array, save_array
from scorekit.models.score_network import ScoreNetwork
from scorekit.runtime.compilation import autocast, compile_seconds, precision_context
from scorekit.runtime.interruption import Stopped, never
from scorekit.runtime.machine import PeakMemory, conditions
from scorekit.runtime.memory import ShrinkingBatch
from scorekit.sampling.langevin import interpolation_angles
from scorekit.sampling.registry import evaluates_between, make_sampler
from scorekit.sampling.trajectory import Sampler
from scorekit.training.networks import build_network, load_weights

Report = Callable[[float, str], None]


class Sampled(Protocol):
    """What samples are drawn for: a cell, and how many trajectories in all, for the progress."""

    @property
    def cell(self) -> Cell: ...
    @property
    def n_sampled(self) -> int: ...


_BATCH = ("last", "denoised", "seconds", "compile_s")  # what a chunk holds


class Drawing:
    """The sample stages of one job; ``train`` makes the snapshots that they need.

    ``stop`` is asked before each batch and after each of its noise scales; where it says True,
    Stopped is raised. Finished batches are kept, the one being drawn is lost, as it is to a kill:
    L T + 1 score evaluations of ``sampling_batch`` images. With Table 4 of Song & Ermon 2020 these
    are 1,161 for images of 32x32 but 6,934 for the 64 times as many pixels of FFHQ, where the
    default batch of 256 can be hours: choose one that is drawn between two stops.

    Several ranks draw the batches by turns, and rank 0 puts them together. A batch that does not
    fit into the device's memory is drawn in halves, or in quarters, and stays one batch otherwise.
    """

    def __init__(
        self,
        context: Context,
        report: Report,
        train: Callable[[Cell], None],
        stop: Callable[[], bool] = never,
    ) -> None:
        self.context, self.report, self.train, self.stop = context, report, train, stop
        self.store, self.world = context.store, context.world
        self._batch = ShrinkingBatch(context.sampling_batch, "sampling")
        self._sampler: Sampler | None = None
        self._network: ScoreNetwork
        self._loaded: Path | None = None  # the snapshot that the network holds

    def samples(
        self, job: Sampled, iteration: int, *, denoise: bool, final: bool = True
    ) -> np.ndarray:
        """Return the samples of a snapshot, uint8 (N, C, H, W): all, or those of its selection."""
        parts = []
        for stage in job.cell.sample_stages(iteration, final=final):
            self.sample(job, stage, job.n_sampled)
            path = self.store.directory(stage) / sample_file(denoise)
            parts.append(load_array(path, mapped=True))
        return np.concatenate(parts)

    def sample(self, job: Sampled, stage: Stage, before: int) -> None:
        """Draw the samples of a stage; ``before`` of the job's trajectories came earlier."""

        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            start, stop = stage.settings["start"], stage.settings["stop"]
            drawn = self._draw(job, stage, directory, torch.arange(start, stop), before)
            if drawn is None:
                return FOLLOWED
            files = [save_array(directory / sample_file(d), drawn[d]) for d in (False, True)]
            return drawn["result"] | {"n": stop - start}, files

        self.run(job.cell, stage, execute)

    def interpolate(self, job: Sampled, stage: Stage) -> None:
        """Draw pairs of samples, with what lies between: uint8 (pairs, N + 2, C, H, W).

        The ends of a pair have one start and the noise of two seeds; those between mix the two.
        """

        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            pairs, between = stage.settings["pairs"], stage.settings["between"]
            ends = torch.tensor([0.0, torch.pi / 2])
            angles = torch.cat([ends[:1], interpolation_angles(between), ends[1:]])
            index = torch.arange(pairs).repeat_interleave(between + 2)
            angle = angles.to(torch.float32).repeat(pairs)
            drawn = self._draw(job, stage, directory, index, 0, angle=angle)
            if drawn is None:
                return FOLLOWED
            files = [
                save_array(
                    directory / sample_file(d),
                    drawn[d].reshape(pairs, between + 2, *drawn[d].shape[1:]),
                )
                for d in (False, True)
            ]
            return drawn["result"] | {"angles": angles.tolist()}, files

        self.run(job.cell, stage, execute)

    def run(self, cell: Cell, stage: Stage, execute: Callable[[Path], Any]) -> None:
        """Run a stage that reads a snapshot, which is made first where it is not there."""

        def with_snapshot(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            trained = self.store.directory(cell.train_stage())
            path = snapshot_path(trained, stage.settings["iteration"])
            # A snapshot is whole once it is there, while its training may go on for days. One rank
            # looks, since several would set a damaged one aside at once.
            if self.world.broadcast(
                self.world.is_main and find_tensors(path, keys=("raw", "ema")) is None
            ):
                self.train(cell)
                if self.world.is_main and not path.exists():
                    raise ValueError(
                        f"{path} was removed by ablations.clean, and is needed again; to train "
                        f"anew, remove {trained / 'result.json'}"
                    )
            return execute(directory)

        self.store.run(stage, with_snapshot)
        if not self.world.is_main:
            return
        # Only now: a kill before the result was written would have lost them.
        for chunk in self.store.directory(stage).glob("chunk-*.pt"):
            chunk.unlink(missing_ok=True)

    def _draw(
        self,
        job: Sampled,
        stage: Stage,
        directory: Path,
        index: torch.Tensor,
        before: int,
        *,
        angle: torch.Tensor | None = None,
    ) -> dict[Any, Any] | None:
        """Return the images by denoise setting, and the "result" of the stage so far.

        On rank 0: the others, which draw their share of the batches, return None.
        """
        peak = PeakMemory(self.context.device)
        size, n = self.context.sampling_batch, len(index)
        bounds = [(first, min(first + size, n)) for first in range(0, n, size)]

        found: dict[tuple[int, int], dict[str, Any]] = {}
        drew = False

        def chunk(first: int, last: int) -> Path:
            return directory / f"chunk-{first}-{last}.pt"

        def missing() -> list[tuple[int, int]]:
            for place in bounds:
                if place not in found and (batch := find_tensors(chunk(*place), keys=_BATCH)):
                    found[place] = batch
            return [place for place in bounds if place not in found]

        # Rank 0 says what is missing; so what an interrupted run left is shared out evenly.
        while absent := self.world.broadcast(missing() if self.world.is_main else []):
            stopped, drew = None, True
            try:
                for place in absent[self.world.rank :: self.world.size]:
                    batch = self._draw_batch(job, stage, index, angle, *place, before)
                    save_tensors(chunk(*place), batch)
            except Stopped as error:
                stopped = error
            (stopping,) = self.world.any(stopped is not None)
            if stopping:
                raise stopped or Stopped("sampling stopped on another rank, continues from there")
        if not self.world.is_main:
            return None
        batches = [found[place] for place in bounds]
        return {
            False: torch.cat([batch["last"] for batch in batches]).numpy(),
            True: torch.cat([batch["denoised"] for batch in batches]).numpy(),
            "result": {
                # Of all devices together.
                "sampling_s": sum(batch["seconds"] for batch in batches),
                "compile_s": sum(batch["compile_s"] for batch in batches),
                "score_evaluations_per_sample": job.cell.score_evaluations,
                "conditions": conditions(
                    self.context.device,
                    threads=self.context.threads,
                    compile=self.context.compile,
                    # Of what this process drew, not of batches that were there.
                    peak_memory=peak.bytes() if drew else None,
                    processes=self.world.size,
                ),
            },
        }

    def _draw_batch(
        self,
        job: Sampled,
        stage: Stage,
        index: torch.Tensor,
        angle: torch.Tensor | None,
        first: int,
        last: int,
        before: int,
    ) -> dict[str, Any]:
        """Return the images ``first`` to ``last`` of a stage, and the seconds that they took."""
        cell, settings, device = job.cell, stage.settings, self.context.device
        path = snapshot_path(self.store.directory(cell.train_stage()), settings["iteration"])
        precision, n = settings["precision"], len(index)
        self._sampler_of(cell, path)  # not to be counted
        began, compiled_before = time.monotonic(), compile_seconds()

        def draw(begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
            def report(level: int) -> None:
                if level < settings["n_levels"] - 1 and self.stop():
                    raise Stopped(
                        f"sampling of snapshot {settings['iteration']} stopped before samples "
                        f"{first}-{last} of {n} and continues from there"
                    )
                share = first + begin + (end - begin) * (level + 1) / settings["n_levels"]
                text = f"snapshot {settings['iteration']}, samples {first}-{last} of {n}"
                self.report((before + share) / job.n_sampled, text)

            report(-1)
            # The batch keeps its size at the end, so that one compiled graph serves all.
            place = torch.arange(self._batch.size).add(first + begin).clamp(max=n - 1)
            mixing: dict[str, Any] = {}
            if angle is not None:
                mixing = {"mix_seed": settings["mix_seed"], "mix_angle": angle[place].to(device)}
            sampler, own = self._sampler_of(cell, path), slice(end - begin)
            try:
                with (
                    torch.inference_mode(),  # a tenth faster than no_grad for small networks
                    precision_context(precision),
                    autocast(precision, device),
                ):
                    drawn = sampler.sample(
                        index[place].to(device), tuple(settings["shape"]), progress=report, **mixing
                    )
                    return to_uint8(drawn.last[own].cpu()), to_uint8(drawn.denoised[own].cpu())
            except torch.OutOfMemoryError:
                self._sampler = None  # whose CUDA graphs hold on to the memory of a batch
                raise

        parts = self._batch.run(last - first, draw)
        compiling = compile_seconds() - compiled_before
        return {
            "last": torch.cat([ends for ends, _ in parts]),
            "denoised": torch.cat([denoised for _, denoised in parts]),
            "seconds": time.monotonic() - began - compiling,
            "compile_s": compiling,
        }

    def _sampler_of(self, cell: Cell, snapshot: Path) -> Sampler:
        """Return the cell's sampler with the weights of a snapshot.

        All snapshots of a job are loaded into one network, which is compiled once.
        """
        if self._sampler is None:
            device = self.context.device
            network = build_network(cell.train, cell.data.channels).eval().requires_grad_(False)
            self._network = network.to(device).to(memory_format=torch.channels_last)
            between = evaluates_between(cell.sampler, cell.n_steps_each, cell.churn)
            score, options = self._network.sampled_along(cell.ladder.sigmas, between=between)
            self._sampler = make_sampler(
                cell.sampler,
                score,
                cell.ladder,
                device=device,
                seed=cell.seed,
                compile=self.context.compile,
                start=cell.start,
                # That of annealed Langevin dynamics is the ladder's.
                snr=None if cell.sampler == "annealed" else cell.snr,
                churn=cell.churn,
                **options,
            )
            self._loaded = None
        if self._loaded != snapshot:
            load_weights(self._network, snapshot, cell.weights)
            self._loaded = snapshot
        return self._sampler
