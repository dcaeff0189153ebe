"""What the trials that train small energies compute: the 2-D toy, losses over time, deep energies.

Both sides of a comparison start from the same weights and meet the same batches, noise and
directions; they take their steps by turns, so that their times are of the same moments.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablations.finite_difference_learning import (
    Found,
    Learner,
    NoisyImages,
    Progress,
    diagnose,
    evaluation_iterations,
    seeded,
)
from kernels.philox import philox_key
from scorekit import toy_mixture
from scorekit.data import digits_split, to_float
from scorekit.energy_models import ConvEnergy, MLPEnergy
from scorekit.files import atomic_write
from scorekit.projections import projections
from scorekit.score_matching import Objective, score_matching_loss


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


def loss_over_time(settings: dict[str, Any], directory: Path, progress: Progress) -> Found:
    """Train a convolutional energy on the digits by an objective and its finite differences.

    Every so often both are judged by exact score matching on held-out images with fixed noise.
    """
    base: Objective = settings["objective"]
    finite: Objective = "fd_dsm" if base == "dsm" else "fd_ssm"
    names = {base.upper(): base, "FD-" + base.upper(): finite}
    images = _noisy_digits(settings)
    model = seeded(settings["seed"], lambda: _digits_energy(settings))
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


def deep_energy(settings: dict[str, Any], directory: Path, progress: Progress) -> Found:
    """Train a convolutional energy on the digits by FD-SSM at one epsilon; None: by SSM."""
    epsilon = settings["epsilon"]
    objective: Objective = "ssm" if epsilon is None else "fd_ssm"
    images = _noisy_digits(settings)
    model = seeded(settings["seed"], lambda: _digits_energy(settings))
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


def _digits_energy(settings: dict[str, Any]) -> ConvEnergy:
    return ConvEnergy(1, 8, settings["width"], settings["n_blocks"], n_halvings=0)


def _noisy_digits(settings: dict[str, Any]) -> NoisyImages:
    train, test = (to_float(digits_split(split)[0]) for split in ("train", "test"))
    return NoisyImages(settings, train, test[: settings["n_held_out"]])
