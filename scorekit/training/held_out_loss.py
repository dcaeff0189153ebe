"""The training objective on training and on held-out images, so that the two compare (Fig. 15)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kernels.philox import philox_key
from scorekit.runtime.compilation import autocast, precision_context
from scorekit.training.loss import WATCH_STEP, ScoreLoss
from scorekit.training.settings import TrainSettings


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


def evaluated_losses(
    network: nn.Module, settings: TrainSettings, images: Tensor, index: Tensor, draws: int
) -> np.ndarray:
    """Return the objective of each image, unflipped, over ``draws`` of noise: float64 (B,).

    Of the kind that compares between runs: :meth:`scorekit.training.loss.ScoreLoss.comparable`. The
    noise is none of the training's, and the same for two images of one ``index``. The network's
    parameters are to need no gradient. Arguments as :data:`scorekit.training.loss.Loss` says.
    """
    device = images.device
    key = philox_key(settings.seed, str(device))
    loss = ScoreLoss.comparable(settings, device)
    total = torch.zeros(len(images), dtype=torch.float64, device=device)
    with precision_context(settings.precision), autocast(settings.precision, str(device)):
        for draw in range(draws):
            step = torch.tensor(WATCH_STEP - 1 - draw, device=device)
            losses = loss(network, images, index, step, key)
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
