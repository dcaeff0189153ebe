"""The training objective as a function of images and of what their randomness follows from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

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
from scorekit.techniques.noise_levels import LOSS_WEIGHTS, NOISE_LEVELS
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
    """A score matching objective over all noise scales, as the settings say or otherwise.

    ``augmented`` flips images where the settings do. Objectives have the same noise, so that runs
    of different ones are paired. Noise scales that are no ladder's
    (:data:`scorekit.techniques.noise_levels.NOISE_LEVELS`) need a network with a method
    ``score(x, sigma)``, sigma (B,), as :class:`scorekit.models.score_network.ScoreNetwork` has.
    """

    def __init__(
        self,
        settings: TrainSettings,
        device: str | torch.device,
        *,
        augmented: bool,
        objective: Objective | None = None,
        noise_levels: str | None = None,
        loss_weights: str | None = None,
    ) -> None:
        self.settings, self.augmented = settings, augmented
        name = settings.noise_levels if noise_levels is None else noise_levels
        self.noise_levels = None if name == "ladder" else NOISE_LEVELS[name]
        name = settings.loss_weights if loss_weights is None else loss_weights
        own = None if self.noise_levels is None else self.noise_levels.weight
        self.weight = own if name == "own" else LOSS_WEIGHTS[name]
        self.objective: Objective = settings.objective if objective is None else objective
        self.sigmas = settings.sigmas.to(device)

    @classmethod
    def comparable(
        cls,
        settings: TrainSettings,
        device: str | torch.device,
        *,
        objective: Objective | None = None,
    ) -> Self:
        """Return a loss of any training that compares with others': Eq. (2)'s on the ladder.

        Of images that are not augmented, over the ladder's scales with Eq. (2)'s weights, whatever
        the settings say of these.
        """
        return cls(
            settings,
            device,
            augmented=False,
            objective=objective,
            noise_levels="ladder",
            loss_weights="equal",
        )

    @property
    def compiles(self) -> bool:
        """Whether it compiles in less than minutes: derivatives of derivatives do not."""
        return self.objective in ("dsm", "fd_ssm", "fd_ssm_vr")

    def check(self, network: nn.Module) -> None:
        """Raise ValueError where the noise scales are not such as the network can be told."""
        if self.noise_levels is not None and not callable(getattr(network, "score", None)):
            raise ValueError(
                f"noise_levels = {self.settings.noise_levels!r} needs a network with a method "
                f"score(x, sigma), which {type(network).__name__} has not; 'ladder' needs none"
            )

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
        score: Callable[[Tensor, Tensor], Tensor] = network
        if self.noise_levels is None:
            sigmas = self.sigmas
            level = philox_integers(key, index, step, len(sigmas), Stream.NOISE_LEVEL)
        else:
            # Each image has a scale of its own: a ladder of B of them.
            ends = settings.sigma_begin, settings.sigma_end
            sigmas = self.noise_levels.draw(key, index, step, *ends)
            level = torch.arange(len(sigmas), device=sigmas.device)
            at: Callable[[Tensor, Tensor], Tensor] = network.score  # type: ignore[assignment]

            def score(x: Tensor, level: Tensor) -> Tensor:
                return at(x, sigmas[level])

        losses = self._losses(score, x, sigmas, level, key, index, step)
        return losses if self.weight is None else self.weight(sigmas[level]) * losses

    def _losses(
        self,
        score: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        sigmas: Tensor,
        level: Tensor,
        key: Tensor,
        index: Tensor,
        step: Tensor,
    ) -> Tensor:
        if self.objective == "dsm":
            return keyed_dsm_loss(score, x, sigmas, level, key, index, step)
        settings, shape = self.settings, tuple(x.shape[1:])
        perturbation = philox_normal(key, index, step, shape, Stream.PERTURBATION)
        v = None
        if needs_projection(self.objective):
            v = projections(settings.projection, key, index, step, shape)
        return annealed_score_matching_loss(
            score,
            x,
            sigmas=sigmas,
            noise_index=level,
            noise=perturbation,
            objective=self.objective,
            projection=v,
            epsilon=settings.fd_epsilon,
        )
