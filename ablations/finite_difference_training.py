"""What the trials that train small energies compute: the 2-D toy, losses over time, deep energies.

Both sides of a comparison start from the same weights and meet the same batches, noise and
directions; they take their steps by turns, so that their times are of the same moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernels.philox import Stream, philox_integers, philox_key, philox_normal
from scorekit import toy_mixture
from scorekit.data import digits_split, to_float
from scorekit.energy_models import ConvEnergy, EnergyModel, MLPEnergy
from scorekit.files import atomic_write
from scorekit.projections import projections
from scorekit.rounding import finite_difference_error
from scorekit.score_matching import Objective, Way, needs_projection, score_matching_loss
from scorekit.timing import synchronise

Progress = Callable[[float, str], None]
Found = tuple[dict[str, Any], list[Path]]

#: A step that no training iteration reaches: the noise and directions of evaluations.
FIXED_STEP = 2**31
#: A rounding error is worth a word where it dominates and exceeds this part of the gradient's norm.
NEGLIGIBLE_ROUNDING = 0.01
#: Exact score matching of so many images at a time: d times as many go through the model at once.
_EXACT_BATCH = 16


class Learner:
    """A model with its optimiser and the seconds that its steps took."""

    def __init__(self, model: EnergyModel, learning_rate: float, device: str) -> None:
        self.model = deepcopy(model).to(device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=learning_rate)
        self.device = torch.device(device)
        self.seconds = 0.0
        self._losses: list[Tensor] = []

    def step(self, loss: Callable[[nn.Module], Tensor]) -> None:
        """Take one step down the mean of ``loss(model)``; its time, device included, is added."""
        synchronise(self.device)
        started = perf_counter()
        self.optimiser.zero_grad(set_to_none=True)
        value = loss(self.model).mean()
        value.backward()
        self.optimiser.step()
        synchronise(self.device)
        self.seconds += perf_counter() - started
        self._losses.append(value.detach())

    def check(self, name: str, iteration: int) -> None:
        """Raise FloatingPointError where a loss since the last check was not finite."""
        losses = torch.stack(self._losses).tolist() if self._losses else []
        for back, loss in enumerate(reversed(losses)):
            if not math.isfinite(loss) and all(map(math.isfinite, losses[: -back - 1])):
                raise FloatingPointError(
                    f"{name} diverged: its loss is {loss} at iteration {iteration - back}"
                )
        self._losses.clear()


def seeded(seed: int, build: Callable[[], EnergyModel]) -> EnergyModel:
    """Return a freshly initialised model, a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


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
    error = _diagnosis(learners["FD-SSM"].model, x, v, settings["epsilon"])
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
    images = _Digits(settings)
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


def evaluation_iterations(total: int, count: int) -> set[int]:
    """Return ``count`` iterations or fewer, 0 and the last among them, denser at the beginning."""
    return {round(total * (i / (count - 1)) ** 2) for i in range(count)}


def deep_energy(settings: dict[str, Any], directory: Path, progress: Progress) -> Found:
    """Train a convolutional energy on the digits by FD-SSM at one epsilon; None: by SSM."""
    epsilon = settings["epsilon"]
    objective: Objective = "ssm" if epsilon is None else "fd_ssm"
    images = _Digits(settings)
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


def _diagnosis(
    model: nn.Module, x: Tensor, v: Tensor, epsilon: float, **more: Any
) -> dict[str, Any]:
    """Truncation and rounding of the trained model's gradient, as the table shows them."""
    found = finite_difference_error(
        model, x, v, epsilon, energy=True, negligible=NEGLIGIBLE_ROUNDING, **more
    )
    return {
        "truncation": finite_or_none(found.truncation),
        "rounding": finite_or_none(found.rounding),
        "rounding_dominates": found.rounding_dominates
        and not found.rounding <= NEGLIGIBLE_ROUNDING,
    }


def finite_or_none(value: float) -> float | None:
    """Return the value, or None, as JSON has it, where it is NaN or infinite."""
    return value if math.isfinite(value) else None


def _digits_energy(settings: dict[str, Any]) -> ConvEnergy:
    return ConvEnergy(1, 8, settings["width"], settings["n_blocks"], n_halvings=0)


class _Digits:
    """Batches of digits with their noise and directions, and a held-out set with fixed ones.

    The digits have 17 grey values, of which no density has a score, so that every objective, the
    judge included, is taken at images with Gaussian noise of one scale.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.device = settings, settings["device"]
        self.sigma = settings["sigma"]
        self.train = to_float(digits_split("train")[0]).to(self.device)
        test = digits_split("test")[0][: settings["n_held_out"]]
        self.held_out = to_float(test).to(self.device)
        self.key = philox_key(settings["seed"], self.device)
        # One judge for all seeds.
        self.fixed = self._draws(philox_key(0, self.device), len(self.held_out), FIXED_STEP)

    def batch(self, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, noise and directions of an iteration, (B, 1, 8, 8) each."""
        size = self.settings["batch_size"]
        index = torch.arange(size, device=self.device)
        step = torch.tensor(iteration, device=self.device)
        rows = philox_integers(self.key, index, step, len(self.train), Stream.NOISE_LEVEL)
        return self.train[rows], *self._draws(self.key, size, iteration)

    def _draws(self, key: Tensor, size: int, iteration: int) -> tuple[Tensor, Tensor]:
        index = torch.arange(size, device=self.device)
        step = torch.tensor(iteration, device=self.device)
        noise = philox_normal(key, index, step, (1, 8, 8), Stream.PERTURBATION)
        return noise, projections("rademacher", key, index, step, (1, 8, 8))

    def loss(
        self,
        x: Tensor,
        noise: Tensor,
        v: Tensor | None,
        objective: Objective,
        epsilon: float | None,
        way: Way | None = None,
    ) -> Callable[[nn.Module], Tensor]:
        """Return the objective of a model on a batch."""
        return lambda model: score_matching_loss(
            model,
            x,
            objective=objective,
            energy=True,
            way=way,
            projection=v if needs_projection(objective) else None,
            noise=noise,
            sigma=self.sigma,
            epsilon=epsilon if objective.startswith("fd_") else None,
        )

    @torch.no_grad()
    def exact(self, model: nn.Module, name: str, iteration: int) -> float:
        """Return exact score matching's mean on the held-out images; FloatingPointError if none."""
        total = 0.0
        for x, noise in zip(
            self.held_out.split(_EXACT_BATCH), self.fixed[0].split(_EXACT_BATCH), strict=True
        ):
            found = self.loss(x, noise, None, "exact_sm", None, "taylor")(model)
            total += float(found.sum(dtype=torch.float64))
        if not math.isfinite(total):
            raise FloatingPointError(
                f"{name} diverged: exact score matching is {total} at iteration {iteration}"
            )
        return total / len(self.held_out)

    def diagnosis(self, model: nn.Module, objective: Objective, epsilon: float) -> dict[str, Any]:
        """Return the errors of a finite difference at held-out images."""
        size = self.settings["batch_size"]
        noise, v = (part[:size] for part in self.fixed)
        x = self.held_out[:size]
        more = {"objective": objective, "noise": noise, "sigma": self.sigma}
        return _diagnosis(model, x, v, epsilon, **more)
