"""What the finished trials of the grid ``finite-difference`` say, from their files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.engine.context import Context
from ablations.engine.manifest import Manifest
from ablations.engine.state import job_state
from ablations.pipeline.jobs import TrainJob
from ablations.studies.finite_difference.cells import cell_of
from ablations.studies.finite_difference.jobs import TrialJob
from ablations.studies.finite_difference.trials import FILE, Trial


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A trial with its state, as :func:`job_state` has it, the reason, and its result."""

    trial: Trial
    state: str
    message: str
    result: dict[str, Any] | None
    directory: Path

    @property
    def seed(self) -> int:
        """The trial's seed."""
        return self.trial.settings["seed"]


@dataclass(frozen=True, kw_only=True)
class TrialResults:
    """All trials of an output folder, finished or not."""

    plan: Manifest
    trials: list[TrialResult]

    def of(self, kind: str, **settings: Any) -> list[TrialResult]:
        """Return the trials of a kind whose settings are these."""
        return [
            entry
            for entry in self.trials
            if entry.trial.kind == kind
            and all(entry.trial.settings[key] == value for key, value in settings.items())
        ]

    def done(self, kind: str, **settings: Any) -> dict[int, dict[str, Any]]:
        """Return the results of the finished ones of :meth:`of` by seed."""
        entries = self.of(kind, **settings)
        return {entry.seed: entry.result for entry in entries if entry.result is not None}


def collect_trials(out: Path | str) -> TrialResults:
    """Return what the files below ``out`` say; ValueError where they hold no such grid."""
    out = Path(out)
    plan = FILE.load(out)
    if plan is None:
        raise ValueError(f"{out} holds no grid finite-difference; give the --out of a launch")
    context = Context.reading(out, out / plan.data_root)
    store = context.store
    trials = []
    for trial in plan.units:
        state, message = job_state(TrialJob(trial=trial), context)
        if state == "planned" and trial.facts is not None:
            # It waits for its training.
            state, message = job_state(TrainJob(cell=cell_of(trial)), context)
            state = "planned" if state == "done" else state
        trials.append(
            TrialResult(
                trial=trial,
                state=state,
                message=message,
                result=store.result(trial.stage),
                directory=store.directory(trial.stage),
            )
        )
    return TrialResults(plan=plan, trials=trials)
