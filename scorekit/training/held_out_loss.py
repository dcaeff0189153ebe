"""The training objective on training and on held-out images, so that the two compare (Fig. 15)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.philox import Stream, philox_integers, philox_key, philox_normal, philox_uniform
from scorekit.models.score_network import ScoreNetwork
from scorekit.objectives.directions import projections
from scorekit.objectives.dsm import keyed_dsm_loss
from scorekit.objectives.score_matching import (
    Objective,
    annealed_score_matching_loss,
    needs_projection,
)
from scorekit.runtime.compilation import autocast, precision_context
from scorekit.training.batches import augment
from scorekit.training.settings import TrainSettings

#: A step index that no training iteration reaches: the noise of the loss that is taken meanwhile.
WATCH_STEP = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Mean losses of ``n`` training and ``n`` held-out images, each with ``draws`` of noise.

    ``gap`` is ``test`` - ``train``. The errors are standard errors over images, that of the gap
    over the differences of images that share their noise.
    """

    n: int
    draws: int
    train: float
    train_error: float
    test: float
    test_error: float
    gap: float
    gap_error: float


def keyed_losses(
    network: ScoreNetwork,
    settings: TrainSettings,
    sigmas: Tensor,
    images: Tensor,
    index: Tensor,
    step: Tensor,
    key: Tensor,
    *,
    augmented: bool,
    objective: Objective,
) -> Tensor:
    """Return the loss of each image (B,), all that is random a function of (key, index, step).

    ``images`` are uint8 (B, C, H, W), ``index`` int64 (B,) and ``step`` an int64 scalar;
    ``augmented`` flips them where the settings do.
    """
    shape = tuple(images.shape[1:])
    flip = noise = None
    if augmented and settings.flip:
        flip = philox_integers(key, index, step, 2, Stream.FLIP).bool()
    if settings.dequantisation == "uniform":
        noise = philox_uniform(key, index, step, shape, Stream.DEQUANTISATION)
    x = augment(images, flip=flip, dequantisation=noise)
    level = philox_integers(key, index, step, len(sigmas), Stream.NOISE_LEVEL)
    if objective == "dsm":
        return keyed_dsm_loss(network, x, sigmas, level, key, index, step)
    # The same noise as DSM's, so that runs of different objectives are paired.
    perturbation = philox_normal(key, index, step, shape, Stream.PERTURBATION)
    v = None
    if needs_projection(objective):
        v = projections(settings.projection, key, index, step, shape)
    return annealed_score_matching_loss(
        network,
        x,
        sigmas=sigmas,
        noise_index=level,
        noise=perturbation,
        objective=objective,
        projection=v,
        epsilon=settings.fd_epsilon,
    )


def evaluated_losses(
    network: ScoreNetwork, settings: TrainSettings, images: Tensor, index: Tensor, draws: int
) -> np.ndarray:
    """Return the objective of each image, unflipped, over ``draws`` of noise: float64 (B,).

    The noise is none of the training's, and the same for two images of one ``index``. The network's
    parameters are to need no gradient. Arguments as :func:`keyed_losses`.
    """
    device = images.device
    key, sigmas = philox_key(settings.seed, str(device)), settings.sigmas.to(device)
    total = torch.zeros(len(images), dtype=torch.float64, device=device)
    with precision_context(settings.precision), autocast(settings.precision, str(device)):
        for draw in range(draws):
            losses = keyed_losses(
                network,
                settings,
                sigmas,
                images,
                index,
                torch.tensor(WATCH_STEP - 1 - draw, device=device),
                key,
                augmented=False,
                objective=settings.objective,
            )
            total += losses.detach()
    return (total / draws).cpu().numpy()


def compare_losses(train: np.ndarray, test: np.ndarray, draws: int) -> HeldOutLoss:
    """Return what the losses of images (n,), paired by their noise, say; n >= 2, else ValueError.

    Paired, most of what noise and noise scale do to the two means leaves their difference.
    """
    if train.shape != test.shape or train.ndim != 1 or len(train) < 2:
        raise ValueError(
            f"losses of shapes {train.shape} and {test.shape}: (n,) twice, n >= 2, is right"
        )
    numbers = {}
    for name, values in (("train", train), ("test", test), ("gap", test - train)):
        numbers[name] = float(values.mean())
        numbers[f"{name}_error"] = float(values.std(ddof=1) / len(values) ** 0.5)
    return HeldOutLoss(n=len(train), draws=draws, **numbers)
