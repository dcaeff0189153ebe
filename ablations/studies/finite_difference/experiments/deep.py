"""What epsilon does to a deep energy that is trained by FD-SSM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ablations.studies.finite_difference.experiments.digits import digits_energy, noisy_digits
from ablations.studies.finite_difference.experiments.learning import (
    Found,
    Learner,
    Progress,
)
from scorekit.models.seeded import seeded
from scorekit.objectives.score_matching import Objective


def deep_energy(settings: dict[str, Any], directory: Path, progress: Progress) -> Found:
    """Train a convolutional energy on the digits by FD-SSM at one epsilon; None: by SSM."""
    epsilon = settings["epsilon"]
    objective: Objective = "ssm" if epsilon is None else "fd_ssm"
    images = noisy_digits(settings)
    model = seeded(settings["seed"], lambda: digits_energy(settings))
    learner = Learner(model, settings["learning_rate"], settings["device"])
    total = settings["iterations"]
    for iteration in range(1, total + 1):
        learner.step(images.loss(*images.batch(iteration), objective, epsilon))
        if iteration % 20 == 0 or iteration == total:
            learner.check(objective.upper().replace("_", "-"), iteration)
            progress(iteration / total, f"iteration {iteration}/{total}")
    error = None if epsilon is None else images.diagnosis(learner.model, objective, epsilon)
    exact = images.exact(learner.model, objective, total)
    return {"exact_sm": exact, "seconds": learner.seconds, "error": error}, []
