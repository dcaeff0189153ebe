"""The two-dimensional toy: score fields of SSM and FD-SSM beside the truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablations.studies.finite_difference.experiments.learning import (
    Found,
    Learner,
    Progress,
    diagnose,
)
from kernels.philox import philox_key
from scorekit.data import toy_mixture
from scorekit.files import atomic_write
from scorekit.models.energy import MLPEnergy
from scorekit.models.seeded import seeded
from scorekit.objectives.directions import projections
from scorekit.objectives.score_matching import Objective, score_matching_loss


def toy(settings: dict[str, Any], directory: Path, progress: Progress) -> Found:
    """Train MLP energies on the 2-D toy by SSM and FD-SSM and compare their score fields."""
    device, total = settings["device"], settings["iterations"]
    model = seeded(settings["seed"], lambda: MLPEnergy(2, settings["width"], 3))
    names: dict[str, Objective] = {"SSM": "ssm", "FD-SSM": "fd_ssm"}
    learners = {name: Learner(model, settings["learning_rate"], device) for name in names}
    key = philox_key(settings["seed"], device)
    index = torch.arange(settings["batch_size"], device=device)
    for iteration in range(1, total + 1):
        step = torch.tensor(iteration, device=device)
        x = toy_mixture.sample(key, index, step)
        v = projections("rademacher", key, index, step, (2,))
        for name, objective in names.items():
            learners[name].step(_sliced(x, v, objective, settings["epsilon"]))
        if iteration % 100 == 0 or iteration == total:
            for name, learner in learners.items():
                learner.check(name, iteration)
            progress(iteration / total, f"iteration {iteration}/{total}")
    points = toy_mixture.grid(settings["grid"]).to(device)
    truth, weights = toy_mixture.score(points), toy_mixture.log_density(points).exp()
    fields = {name: learner.model.score(points) for name, learner in learners.items()}
    difference = fields["FD-SSM"], fields["SSM"]
    error = diagnose(learners["FD-SSM"].model, x, v, settings["epsilon"])
    result = {
        "relative_difference": toy_mixture.relative_difference(*difference),
        "relative_difference_weighted": toy_mixture.relative_difference(*difference, weights),
        "fisher_divergence": {
            name: toy_mixture.fisher_divergence(field, truth, weights)
            for name, field in fields.items()
        },
        "seconds": {name: learner.seconds for name, learner in learners.items()},
        "error": error,
    }
    path = directory / "fields.npz"
    arrays = {
        "points": points.cpu().numpy(),
        "truth": truth.cpu().numpy(),
        "ssm": fields["SSM"].cpu().numpy(),
        "fd_ssm": fields["FD-SSM"].cpu().numpy(),
    }
    atomic_write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    return result, [path]


def _sliced(
    x: Tensor, v: Tensor, objective: Objective, epsilon: float
) -> Callable[[nn.Module], Tensor]:
    finite = objective.startswith("fd_")
    return lambda model: score_matching_loss(
        model,
        x,
        objective=objective,
        energy=True,
        projection=v,
        epsilon=epsilon if finite else None,
    )
