"""How far gradients are from exact ones, by epsilon and precision."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablations.studies.finite_difference.experiments.learning import (
    Found,
    Learner,
    Progress,
    finite_or_none,
)
from kernels.philox import Stream, philox_integers, philox_key, philox_normal
from scorekit.data.embedded import photo_patches
from scorekit.data.pixels import to_float
from scorekit.models.energy import ConvEnergy, EnergyModel
from scorekit.models.seeded import seeded
from scorekit.objectives.directions import projections
from scorekit.objectives.score_matching import Way, score_matching_loss


def gradient_error(settings: dict[str, Any], directory: Path, progress: Progress) -> Found:
    """Compare FD-SSM's gradient at several epsilons with automatic differentiation in float64.

    A convolutional energy of 3 x 32 x 32 images, trained a little by DSM on photographs; the same
    images, noise and directions throughout. Float64 finite differences err by truncation alone,
    and what float32 adds is rounding.
    """
    seed, device, sigma = settings["seed"], settings["device"], settings["sigma"]
    width, n_blocks = settings["width"], settings["n_blocks"]
    model = seeded(seed, lambda: ConvEnergy(3, 32, width, n_blocks, n_halvings=0))
    learner = Learner(model, settings["learning_rate"], device)
    images = to_float(_quilts()).to(device)
    key = philox_key(seed, device)
    index = torch.arange(settings["batch_size"], device=device)
    total = settings["iterations"]
    for iteration in range(1, total + 2):
        step = torch.tensor(iteration, device=device)
        x = images[philox_integers(key, index, step, len(images), Stream.NOISE_LEVEL)]
        noise = philox_normal(key, index, step, (3, 32, 32), Stream.PERTURBATION)
        if iteration <= total:
            learner.step(_denoising(x, noise, sigma))
            learner.check("DSM", iteration)
            progress(0.5 * iteration / total, f"iteration {iteration}/{total}")
    v = projections("rademacher", key, index, step, (3, 32, 32))
    trained = learner.model
    x = x + sigma * noise
    exact = _gradient(trained, x, v, "taylor", None, torch.float64)

    def relative(difference: Tensor) -> float | None:
        return finite_or_none(float(difference.norm() / exact.norm()))

    ad_error = relative(_gradient(trained, x, v, "taylor", None, torch.float32) - exact)
    rows = []
    for i, epsilon in enumerate(settings["epsilons"]):
        double = _gradient(trained, x, v, "finite_difference", epsilon, torch.float64)
        single = _gradient(trained, x, v, "finite_difference", epsilon, torch.float32)
        rows.append(
            {
                "epsilon": epsilon,
                "error": relative(single - exact),
                "truncation": relative(double - exact),
                "rounding": relative(single - double),
            }
        )
        progress(0.5 + 0.5 * (i + 1) / len(settings["epsilons"]), f"epsilon {epsilon:g}")
    return {"dim": x[0].numel(), "float32_ad_error": ad_error, "rows": rows}, []


def _denoising(x: Tensor, noise: Tensor, sigma: float) -> Callable[[nn.Module], Tensor]:
    return lambda model: score_matching_loss(
        model, x, objective="dsm", energy=True, noise=noise, sigma=sigma
    )


def _quilts() -> Any:
    """Return uint8 (N, 3, 32, 32): four 16 x 16 patches of photographs each."""
    patches, _ = photo_patches("train")
    patches = patches[: len(patches) // 4 * 4].reshape(-1, 2, 2, 3, 16, 16)
    return patches.transpose(0, 3, 1, 4, 2, 5).reshape(-1, 3, 32, 32)


def _gradient(
    model: EnergyModel, x: Tensor, v: Tensor, way: Way, epsilon: float | None, dtype: torch.dtype
) -> Tensor:
    """Return the parameter gradient of SSM's mean, flattened, in float64 on the CPU."""
    copy = deepcopy(model).to(dtype)
    loss = score_matching_loss(
        copy,
        x.to(dtype),
        objective="ssm" if epsilon is None else "fd_ssm",
        energy=True,
        way=way,
        projection=v.to(dtype),
        epsilon=epsilon,
    )
    found = torch.autograd.grad(loss.mean(), list(copy.parameters()), materialize_grads=True)
    return torch.cat([g.flatten().to("cpu", torch.float64) for g in found])
