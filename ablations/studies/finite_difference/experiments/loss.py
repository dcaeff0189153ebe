"""Losses over wall time of a deep energy: SSM, FD-SSM, DSM, FD-DSM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ablations.studies.finite_difference.experiments.digits import digits_energy, noisy_digits
from ablations.studies.finite_difference.experiments.learning import (
    Found,
    Learner,
    Progress,
    evaluation_iterations,
)
from scorekit.models.seeded import seeded
from scorekit.objectives.score_matching import Objective


def loss_over_time(settings: dict[str, Any], directory: Path, progress: Progress) -> Found:
    """Train a convolutional energy on the digits by an objective and its finite differences.

    Every so often both are judged by exact score matching on held-out images with fixed noise.
    """
    base: Objective = settings["objective"]
    finite: Objective = "fd_dsm" if base == "dsm" else "fd_ssm"
    names = {base.upper(): base, "FD-" + base.upper(): finite}
    images = noisy_digits(settings)
    model = seeded(settings["seed"], lambda: digits_energy(settings))
    learners = {
        name: Learner(model, settings["learning_rate"], settings["device"]) for name in names
    }
    curves: dict[str, dict[str, list[float]]] = {
        name: {"iteration": [], "seconds": [], "exact_sm": []} for name in names
    }
    total = settings["iterations"]
    judged = evaluation_iterations(total, settings["evaluations"])
    for iteration in range(total + 1):
        if iteration:
            x, noise, v = images.batch(iteration)
            for name, objective in names.items():
                loss = images.loss(x, noise, v, objective, settings["epsilon"])
                learners[name].step(loss)
        if iteration in judged:
            for name, learner in learners.items():
                learner.check(name, iteration)
                curve = curves[name]
                curve["iteration"].append(iteration)
                curve["seconds"].append(learner.seconds)
                curve["exact_sm"].append(images.exact(learner.model, name, iteration))
            progress(iteration / total, f"iteration {iteration}/{total}")
    error = images.diagnosis(learners["FD-" + base.upper()].model, finite, settings["epsilon"])
    return {"curves": curves, "error": error}, []
