"""What the finished trials of the grid ``finite-difference`` say, from their files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.engine.failures import read_failure
from ablations.engine.manifest import FiniteDifferencePlan, load_plan
from ablations.engine.stages import StageStore
from ablations.studies.finite_difference.trials import Trial


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A trial with its state (done | failed | diverged | planned), the reason, and its result."""

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

    plan: FiniteDifferencePlan
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


def trial_state(trial: Trial, out: Path, store: StageStore) -> tuple[str, str]:
    """Return (done | failed | diverged | planned, message) of a trial, from its files."""
    if store.result(trial.stage) is not None:
        return "done", ""
    failure = read_failure(out, trial.job_name)
    return ("planned", "") if failure is None else (failure["kind"], failure["message"])


def collect_trials(out: Path) -> TrialResults:
    """Return what the files below ``out`` say; ValueError where they hold no such grid."""
    plan = load_plan(out)
    if plan is None:
        raise ValueError(f"{out} holds no grid finite-difference; give the --out of a launch")
    store = StageStore(out / "stages")
    trials = []
    for trial in plan.trials:
        state, message = trial_state(trial, out, store)
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
