"""A trial as a job, and the trainings of score networks, which are the other grids' own."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch

from ablations.engine.context import Context
from ablations.engine.job import Job, Work
from ablations.pipeline.jobs import TrainJob
from ablations.studies.finite_difference.cells import cell_of
from ablations.studies.finite_difference.trials import Trial
from scorekit.runtime.compilation import precision_context
from scorekit.runtime.machine import PeakMemory, conditions

_FOLDER = "ablations.studies.finite_difference.experiments"
#: What runs each kind of trial: a module, which is imported when one runs, and its function.
_EXPERIMENTS = {
    "toy": ("toy", "toy"),
    "loss": ("loss", "loss_over_time"),
    "distance": ("distance", "distance"),
    "flow": ("flow", "flow"),
    "implicit": ("implicit", "implicit"),
    "dkef": ("dkef", "dkef"),
    "deep": ("deep", "deep_energy"),
    "gradient": ("gradient", "gradient_error"),
    "cost": ("cost", "cost"),
}
#: Kinds whose experiments read data that are not embedded.
_WITH_DATA = ("flow", "implicit", "dkef")


@dataclass(frozen=True, kw_only=True)
class TrialJob(Job):
    """A trial; one whose seconds are compared is to be ``alone``."""

    kind: ClassVar[str] = "trial"
    trial: Trial

    @cached_property
    def name(self) -> str:
        return f"trial-{self.trial.stage.digest}"

    @property
    def title(self) -> str:
        return self.trial.name

    def is_done(self, context: Context, *, thorough: bool = True) -> bool:
        return context.store.result(self.trial.stage) is not None

    def run(self, work: Work) -> None:
        work.context.store.run(self.trial.stage, lambda folder: self._execute(folder, work))

    def _execute(self, folder: Path, work: Work) -> tuple[dict[str, Any], list[Path]]:
        settings, more = self.trial.settings, list[Any]()
        if self.trial.kind in _WITH_DATA:
            more = [work.context.data_root]
        if self.trial.facts is not None:
            more = [cell_of(self.trial), work.context]
        module, name = _EXPERIMENTS[self.trial.kind]
        experiment = getattr(import_module(f"{_FOLDER}.{module}"), name)
        # Times depend on the threads, which therefore are of the settings.
        torch.set_num_threads(settings["threads"])
        peak, started = PeakMemory(settings["device"]), time.perf_counter()
        with precision_context("fp32"):
            result, files = experiment(settings, folder, work.progress, *more)
        result["conditions"] = conditions(
            settings["device"],
            threads=settings["threads"],
            compile=settings.get("compile", False),
            # Parts that measure memory themselves set the mark back.
            peak_memory=None if "peak_bytes" in result else peak.bytes(),
        ) | {"load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None}
        result["trial_s"] = time.perf_counter() - started
        return result, files


class NetworkJob(TrainJob):
    """The training of a score network, which counts as one trial: nobody knows their work."""

    @property
    def effort(self) -> float:
        return 1.0


def trial_jobs(trials: Sequence[Trial]) -> list[Job]:
    """Return the jobs of trials: first the trainings that some of them measure."""
    trainings: dict[str, NetworkJob] = {}
    jobs = []
    for trial in trials:
        needs: tuple[str, ...] = ()
        # Folders of earlier versions do not say what their networks are trained on.
        if trial.facts is not None:
            training = NetworkJob(cell=cell_of(trial), alone=True)
            trainings.setdefault(training.name, training)
            needs = (training.name,)
        jobs.append(TrialJob(trial=trial, needs=needs, alone=trial.timed))
    return [*trainings.values(), *jobs]
