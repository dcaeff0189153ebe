"""What the trials of flow compute: NICE, whose likelihood is exact, trained by each objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablations.studies.finite_difference.data import load_images
from ablations.studies.finite_difference.experiments.learning import (
    Found,
    Learner,
    NoisyImages,
    Progress,
    evaluation_iterations,
)
from scorekit.data.pixels import to_float
from scorekit.models.nice import NICE
from scorekit.models.seeded import seeded
from scorekit.objectives.curvature import (
    approximate_backpropagation_loss,
    curvature_propagation_loss,
)
from scorekit.objectives.directions import projections
from scorekit.objectives.likelihood import maximum_likelihood_loss

LIKELIHOOD, CURVATURE, APPROXIMATE = "mle", "curvature", "approximate"


def flow(settings: dict[str, Any], directory: Path, progress: Progress, data_root: Path) -> Found:
    """Train NICE on images with Gaussian noise by one objective; its likelihood on held-out ones.

    The density of the noisy images is what every objective is to find. Images are centred, and
    the flow starts as independent logistic pixels of the data's variances.
    """
    images = _noisy_images(settings, data_root)
    objective, total = settings["objective"], settings["iterations"]
    model = seeded(settings["seed"], lambda: _initial(settings, images))
    learner = Learner(model, settings["learning_rate"], settings["device"])
    curve: dict[str, list[float]] = {"iteration": [], "seconds": [], "nll": []}
    judged = evaluation_iterations(total, settings["evaluations"])
    for iteration in range(total + 1):
        if iteration:
            learner.step(_loss(images, objective, iteration))
        if iteration in judged:
            learner.check(objective, iteration)
            curve["iteration"].append(iteration)
            curve["seconds"].append(learner.seconds)
            curve["nll"].append(_likelihood(images, learner.model, objective, iteration))
            progress(iteration / total, f"iteration {iteration}/{total}")
    error = None
    if objective.startswith("fd_"):
        error = images.diagnosis(learner.model, objective, settings["epsilon"])
    return {
        "curve": curve,
        "exact_sm": images.exact(learner.model, objective, total, settings["n_exact"]),
        "seconds": learner.seconds,
        "dim": model.dim,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "error": error,
    }, []


def _noisy_images(settings: dict[str, Any], data_root: Path) -> NoisyImages:
    train, test = (
        to_float(part).flatten(1) for part in load_images(settings["dataset"], data_root)
    )
    mean = train.mean(0)
    return NoisyImages(settings, train - mean, test[: settings["n_held_out"]] - mean)


def _initial(settings: dict[str, Any], images: NoisyImages) -> NICE:
    dim = images.shape[0]
    shape = {name: settings[name] for name in ("width", "n_hidden", "n_couplings")}
    model = NICE(dim, **shape)
    with torch.no_grad():
        std = (images.train.var(0) + settings["sigma"] ** 2).sqrt()
        # The standard logistic distribution has the variance pi^2 / 3.
        model.log_scale.copy_(-(std * math.sqrt(3) / math.pi).log())
    return model


def _loss(images: NoisyImages, objective: str, iteration: int) -> Callable[[NICE], Tensor]:
    x, noise, v = images.batch(iteration)
    noisy = x + images.sigma * noise
    if objective == LIKELIHOOD:
        return lambda model: maximum_likelihood_loss(model, noisy)
    if objective == APPROXIMATE:
        return lambda model: approximate_backpropagation_loss(model, noisy)
    if objective == CURVATURE:
        index = torch.arange(len(x), device=x.device)
        step = torch.tensor(iteration, device=x.device)

        def signs(n: int) -> Tensor:
            return projections("rademacher", images.key, index, step, (n,))

        return lambda model: curvature_propagation_loss(model, noisy, signs)
    return images.loss(x, noise, v, objective, images.settings["epsilon"])  # type: ignore[arg-type]


@torch.no_grad()
def _likelihood(images: NoisyImages, model: NICE, objective: str, iteration: int) -> float:
    """Return -log p in nats, the mean over the held-out images with their fixed noise."""
    noisy = images.held_out + images.sigma * images.fixed[0]
    found = float(torch.cat([model.log_prob(x) for x in noisy.split(1024)]).double().mean())
    if not math.isfinite(found):
        raise FloatingPointError(
            f"{objective} diverged: the mean log likelihood is {found} at iteration {iteration}"
        )
    return -found
