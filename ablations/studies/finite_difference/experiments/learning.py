"""What the trials that train share: learners, paired batches of noisy images, diagnoses."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from kernels.philox import Stream, philox_integers, philox_key, philox_normal
from scorekit.objectives.directions import projections
from scorekit.objectives.rounding import finite_difference_error
from scorekit.objectives.score_matching import Objective, Way, needs_projection, score_matching_loss
from scorekit.runtime.timing import synchronise

Progress = Callable[[float, str], None]
Found = tuple[dict[str, Any], list[Path]]
Model = TypeVar("Model", bound=nn.Module)

#: A step that no training iteration reaches: the noise and directions of evaluations.
FIXED_STEP = 2**31
#: A rounding error is worth a word where it dominates and exceeds this part of the gradient's norm.
NEGLIGIBLE_ROUNDING = 0.01
#: Exact score matching sends each image d times through the model, at most so many in all at once.
_EXACT_AT_ONCE = 1024


class Learner(Generic[Model]):
    """A copy of a model with its optimiser and the seconds that its steps took."""

    def __init__(
        self,
        model: Model,
        learning_rate: float,
        device: str,
        optimiser: type[torch.optim.Optimizer] = torch.optim.Adam,
    ) -> None:
        self.model = deepcopy(model).to(device)
        self.optimiser = optimiser(self.model.parameters(), lr=learning_rate)  # type: ignore[call-arg]
        self.device = torch.device(device)
        self.seconds = 0.0
        self._losses: list[Tensor] = []

    def step(self, loss: Callable[[Model], Tensor]) -> None:
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


def evaluation_iterations(total: int, count: int) -> set[int]:
    """Return ``count`` iterations or fewer, 0 and the last among them, denser at the beginning."""
    return {round(total * (i / (count - 1)) ** 2) for i in range(count)}


def diagnose(model: nn.Module, x: Tensor, v: Tensor, epsilon: float, **more: Any) -> dict[str, Any]:
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


class NoisyImages:
    """Batches of images with their noise and directions, and a held-out set with fixed ones.

    ``train`` and ``held_out`` are float32 (N, ...). Grey values are few, and no density of them has
    a score, so that every objective, the judge included, is taken at images with Gaussian noise of
    one scale.
    """

    def __init__(self, settings: dict[str, Any], train: Tensor, held_out: Tensor) -> None:
        self.settings, self.device = settings, settings["device"]
        self.sigma = settings["sigma"]
        self.shape = tuple(train.shape[1:])
        self.train, self.held_out = train.to(self.device), held_out.to(self.device)
        self.key = philox_key(settings["seed"], self.device)
        # One judge for all seeds.
        self.fixed = self._draws(philox_key(0, self.device), len(self.held_out), FIXED_STEP)

    def batch(self, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, noise and directions of an iteration, (B, ...) each."""
        size = self.settings["batch_size"]
        index = torch.arange(size, device=self.device)
        step = torch.tensor(iteration, device=self.device)
        rows = philox_integers(self.key, index, step, len(self.train), Stream.NOISE_LEVEL)
        return self.train[rows], *self._draws(self.key, size, iteration)

    def _draws(self, key: Tensor, size: int, iteration: int) -> tuple[Tensor, Tensor]:
        index = torch.arange(size, device=self.device)
        step = torch.tensor(iteration, device=self.device)
        noise = philox_normal(key, index, step, self.shape, Stream.PERTURBATION)
        return noise, projections("rademacher", key, index, step, self.shape)

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
    def exact(self, model: nn.Module, name: str, iteration: int, n: int | None = None) -> float:
        """Return exact score matching's mean on ``n`` of the held-out images, by default all.

        Raises FloatingPointError where it is not finite.
        """
        total = 0.0
        images, fixed = self.held_out[:n], self.fixed[0][:n]
        at_once = max(1, _EXACT_AT_ONCE // images[0].numel())
        for x, noise in zip(images.split(at_once), fixed.split(at_once), strict=True):
            found = self.loss(x, noise, None, "exact_sm", None, "taylor")(model)
            total += float(found.sum(dtype=torch.float64))
        if not math.isfinite(total):
            raise FloatingPointError(
                f"{name} diverged: exact score matching is {total} at iteration {iteration}"
            )
        return total / len(images)

    def diagnosis(self, model: nn.Module, objective: Objective, epsilon: float) -> dict[str, Any]:
        """Return the errors of a finite difference at held-out images."""
        size = self.settings["batch_size"]
        noise, v = (part[:size] for part in self.fixed)
        x = self.held_out[:size]
        more = {"objective": objective, "noise": noise, "sigma": self.sigma}
        return diagnose(model, x, v, epsilon, **more)
