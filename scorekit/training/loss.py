"""The training objective as a function of images and of what their randomness follows from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kernels.philox import Stream, philox_integers, philox_normal, philox_uniform
from scorekit.objectives.directions import projections
from scorekit.objectives.dsm import keyed_dsm_loss
from scorekit.objectives.score_matching import (
    Objective,
    annealed_score_matching_loss,
    needs_projection,
)
from scorekit.training.batches import augment
from scorekit.training.settings import TrainSettings

#: (network, images, index, step, key) -> the loss of each image (B,). ``images`` are uint8
#: (B, C, H, W), ``index`` int64 (B,) their places in the batch, ``step`` an int64 scalar, ``key``
#: that of the seed. What is random is to follow from the last three, by `kernels.philox`: then it
#: is the same when a run continues, on any number of ranks.
Loss = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]

#: A step index that no training iteration reaches: the noise of the loss that is taken meanwhile.
WATCH_STEP = 2**32 - 1


class ScoreLoss:
    """A score matching objective over all noise scales, that of the settings or another.

    ``augmented`` flips images where the settings do. Objectives have the same noise, so that runs
    of different ones are paired.
    """

    def __init__(
        self,
        settings: TrainSettings,
        device: str | torch.device,
        *,
        augmented: bool,
        objective: Objective | None = None,
    ) -> None:
        self.settings, self.augmented = settings, augmented
        self.objective: Objective = settings.objective if objective is None else objective
        self.sigmas = settings.sigmas.to(device)

    @property
    def compiles(self) -> bool:
        """Whether it compiles in less than minutes: derivatives of derivatives do not."""
        return self.objective in ("dsm", "fd_ssm", "fd_ssm_vr")

    def __call__(
        self, network: nn.Module, images: Tensor, index: Tensor, step: Tensor, key: Tensor
    ) -> Tensor:
        """Return the loss of each image (B,); arguments as ``Loss`` says."""
        settings = self.settings
        shape = tuple(images.shape[1:])
        flip = noise = None
        if self.augmented and settings.flip:
            flip = philox_integers(key, index, step, 2, Stream.FLIP).bool()
        if settings.dequantisation == "uniform":
            noise = philox_uniform(key, index, step, shape, Stream.DEQUANTISATION)
        x = augment(images, flip=flip, dequantisation=noise)
        level = philox_integers(key, index, step, len(self.sigmas), Stream.NOISE_LEVEL)
        if self.objective == "dsm":
            return keyed_dsm_loss(network, x, self.sigmas, level, key, index, step)
        perturbation = philox_normal(key, index, step, shape, Stream.PERTURBATION)
        v = None
        if needs_projection(self.objective):
            v = projections(settings.projection, key, index, step, shape)
        return annealed_score_matching_loss(
            network,
            x,
            sigmas=self.sigmas,
            noise_index=level,
            noise=perturbation,
            objective=self.objective,
            projection=v,
            epsilon=settings.fd_epsilon,
        )
