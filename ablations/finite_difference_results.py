"""What the finished trials of the grid ``finite-difference`` say, from their files alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from ablations.failures import read_failure
from ablations.finite_difference_plan import FiniteDifferencePlan, Trial, load_plan
from ablations.stages import StageStore

CONFIDENCE = 0.95


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


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The mean over ``n`` pairs with its 95 % interval by Student's t, NaN for one pair.

    A ratio's is that of the logarithms, turned back. All are NaN where there is no pair.
    """

    mean: float
    low: float
    high: float
    n: int


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Return second - first over pairs."""
    return _interval([b - a for a, b in zip(first, second, strict=True)])


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Return second / first over pairs, all positive."""
    logs = _interval([math.log(b / a) for a, b in zip(first, second, strict=True)])
    return Paired(
        mean=math.exp(logs.mean), low=math.exp(logs.low), high=math.exp(logs.high), n=logs.n
    )


def comparison(
    group: str,
    quantity: str,
    sort: str,
    first: tuple[str, Sequence[float]],
    second: tuple[str, Sequence[float]],
) -> dict[str, Any]:
    """Return a record of two named sides over pairs; ``sort`` is "ratio" or "difference".

    Of the pairs alone whose values are both finite, which the record counts.
    """
    paired = paired_ratio if sort == "ratio" else paired_difference
    pairs = [
        pair for pair in zip(first[1], second[1], strict=True) if all(map(math.isfinite, pair))
    ]
    sides = [a for a, _ in pairs], [b for _, b in pairs]
    record: dict[str, Any] = {"group": group, "quantity": quantity, "sort": sort}
    record |= {"first": (first[0], sides[0]), "second": (second[0], sides[1])}
    return record | vars(paired(*sides))


def _interval(values: Sequence[float]) -> Paired:
    n, mean = len(values), fmean(values) if values else math.nan
    half = math.nan
    if n > 1:
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * stdev(values) / math.sqrt(n)
    return Paired(mean=mean, low=mean - half, high=mean + half, n=n)


def mean_and_spread(values: Iterable[float | None]) -> tuple[float, float]:
    """Return mean and sample standard deviation; NaN where there are too few or one is None."""
    numbers = [math.nan if value is None else value for value in values]
    mean = fmean(numbers) if numbers else math.nan
    return mean, stdev(numbers) if len(numbers) > 1 and math.isfinite(mean) else math.nan
