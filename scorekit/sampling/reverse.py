"""Samplers that take one step from each noise scale to the next: reverse diffusion, and ancestral.

Both discretise the chain that adds noise of variance sigma_i^2 to the data, the variance exploding
(VE) SDE of Song et al. 2021 (arXiv:2011.13456), and differ in the noise of a step.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.langevin_step import langevin_step
from scorekit.sampling.consistent import refined_sigmas
from scorekit.sampling.trajectory import Sampler, Score, check_refinable, check_scales, entry


class ReverseDiffusion(Sampler):
    """Reverse diffusion predictor (Song et al. 2021, Algorithm 2); arguments as :class:`Sampler`.

    x + (sigma_i^2 - sigma_{i+1}^2) s(x, sigma_i) + sqrt(sigma_i^2 - sigma_{i+1}^2) z leads from
    sigma_i to sigma_{i+1}; the last step, to 0 and without noise, is the denoising one. ``sigmas``
    (L,), L >= 2, is the descending ladder. ``n_steps_each`` = T > 1 refines it
    (:func:`refined_sigmas`): T steps lead from each scale to the next, ``score`` is given the
    indices of the refined ladder, and ``times_sigma`` or ``takes_sigma`` is needed. Network
    evaluations per sample: (L - 1) T + 1.
    """

    name = "reverse diffusion"

    def __init__(
        self, score: Score, sigmas: Tensor, *, n_steps_each: int = 1, **options: Any
    ) -> None:
        check_scales(self.name, sigmas)
        check_refinable(self.name, n_steps_each, **options)
        scales = refined_sigmas(sigmas, n_steps_each)
        super().__init__(
            score,
            scales,
            n_levels=len(sigmas),
            steps_per_level=n_steps_each,
            n_steps=len(scales) - 1,
            **options,
        )
        variance = scales.double().square()
        removed = variance[:-1] - variance[1:]
        self._removed = removed.to(torch.float32)
        self._amplitudes = self._amplitudes_of(variance, removed).to(torch.float32)

    @staticmethod
    def _amplitudes_of(variance: Tensor, removed: Tensor) -> Tensor:
        """Return the standard deviation of the noise of each step, float64 (N - 1,)."""
        return removed.sqrt()

    def _advance(
        self,
        x: Tensor,
        step: Tensor,
        sample_index: Tensor,
        mix: tuple[Tensor, Tensor] | None,
        memory: tuple[Tensor, ...],
    ) -> Tensor:
        index = step.clamp(max=len(self._removed) - 1)
        langevin_step(
            x,
            self._evaluate(x, index),
            entry(self._removed, index),
            self._key,
            sample_index,
            step,
            sigma=entry(self._sigmas, index) if self._times_sigma else None,
            amplitude=entry(self._amplitudes, index),
            mix=mix,
            out=x,
        )
        return index + 1


class Ancestral(ReverseDiffusion):
    """Ancestral sampling of the VE chain (Song et al. 2021, App. F), as reverse diffusion is.

    Its noise is that of the posterior p(x_{i+1} | x_i, x_0), of variance
    sigma_{i+1}^2 (sigma_i^2 - sigma_{i+1}^2) / sigma_i^2, which is less.
    """

    name = "ancestral sampling"

    @staticmethod
    def _amplitudes_of(variance: Tensor, removed: Tensor) -> Tensor:
        return (variance[1:] * removed / variance[:-1]).sqrt()
