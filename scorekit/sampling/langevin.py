"""Annealed Langevin dynamics (Song & Ermon 2020, Algorithm 1).

Consistent annealed sampling (Jolicoeur-Martineau et al. 2020, arXiv:2009.05475) has the same drift
and other noise.
"""

import math
from typing import Any

import torch
from torch import Tensor

from kernels.langevin_step import langevin_step
from scorekit.sampling.consistent import (
    check_consistent_step_size,
    consistent_amplitudes,
    refined_sigmas,
)
from scorekit.sampling.trajectory import Sampler, Score, check_refinable, entry, per_sample
from scorekit.techniques.ladder import Ladder
from scorekit.techniques.step_size import check_snr, check_step_size, snr_step_size


def interpolation_angles(n: int) -> Tensor:
    """Return the angles k pi / (2 (n + 1)), k = 1 ... n, of App. B.2, float32 (n,)."""
    if n < 1:
        raise ValueError(f"n = {n} must be at least 1")
    return (torch.arange(1, n + 1, dtype=torch.float64) * (math.pi / (2 * (n + 1)))).float()


class AnnealedLangevin(Sampler):
    """Langevin dynamics at one noise scale after another; other arguments as :class:`Sampler`.

    ``sigmas`` (L,) is the descending ladder, ``step_size`` is epsilon of Algorithm 1 and
    ``n_steps_each`` its T. With ``times_sigma`` the division by sigma is part of the update, and
    with it or with ``takes_sigma`` a network can be sampled along any ladder.

    ``snr`` in place of ``step_size`` gives each step of each sample its own epsilon, by
    :func:`scorekit.techniques.step_size.snr_step_size`.

    ``consistent`` takes one step x + epsilon sigma_i^2 / sigma_L^2 s(x, sigma_i) from each scale
    to the next, and adds the noise that gives it the variance of that scale; the last step adds
    none. ``n_steps_each`` > 1 then refines the ladder (:func:`refined_sigmas`), whose indices
    ``score`` is given, and needs ``times_sigma`` or ``takes_sigma``. ValueError as in
    :func:`check_consistent_step_size`.

    Network evaluations per sample, denoising included: L T + 1; consistent (L - 1) T + 1.
    """

    def __init__(
        self,
        score: Score,
        sigmas: Tensor,
        *,
        step_size: float | None = None,
        n_steps_each: int,
        snr: float | None = None,
        consistent: bool = False,
        **options: Any,
    ) -> None:
        if n_steps_each < 1:
            raise ValueError(f"n_steps_each = {n_steps_each} must be at least 1")
        n_levels = len(sigmas)
        if (step_size is None) == (snr is None):
            raise ValueError("step_size or snr is needed, one of them")
        if snr is not None:
            check_snr(snr)
            if consistent:
                raise ValueError("snr: consistent annealed sampling needs a step_size instead")
        elif step_size is not None and consistent:
            check_consistent_step_size(step_size, sigmas, n_steps_each)
            check_refinable("consistent annealed sampling", n_steps_each, **options)
            sigmas = refined_sigmas(sigmas, n_steps_each)
        elif step_size is not None:
            check_step_size(step_size, float(sigmas[-1]))
        super().__init__(
            score,
            sigmas,
            n_levels=n_levels,
            steps_per_level=n_steps_each,
            # Consistent sampling's last step is part of the last evaluation.
            n_steps=(n_levels - consistent) * n_steps_each,
            **options,
        )
        self._consistent, self._snr = consistent, snr
        self._steps_per_sigma = 1 if consistent else n_steps_each
        # A step size for each noise scale, where one sets it: snr does at each step.
        epsilon = 0.0 if step_size is None else step_size
        alphas = epsilon * (sigmas.double() / sigmas[-1].double()).square()
        self._alphas = alphas.to(torch.float32)
        self._rate = epsilon / float(sigmas[-1]) ** 2
        self._amplitudes = (
            consistent_amplitudes(self._rate, sigmas).to(torch.float32) if consistent else None
        )

    @classmethod
    def _of_ladder(cls, ladder: Ladder) -> dict[str, Any]:
        own = {"step_size": ladder.step_size} if ladder.snr is None else {"snr": ladder.snr}
        return super()._of_ladder(ladder) | own

    def _advance(
        self,
        x: Tensor,
        step: Tensor,
        sample_index: Tensor,
        mix: tuple[Tensor, Tensor] | None,
        memory: tuple[Tensor, ...],
    ) -> Tensor:
        # Steps beyond the last, as a CUDA graph's warm-up takes, stay at the smallest noise scale.
        last = len(self._sigmas) - 1
        index = (step // self._steps_per_sigma).clamp(max=last)
        if self._snr is not None:
            score = self._evaluate_score(x, index)
            z = self._noise(x, step, sample_index, mix)
            epsilon = per_sample(snr_step_size(score, z, self._snr), x)
            x.copy_(x + epsilon * score + (2 * epsilon).sqrt() * z)
            return index
        score = self._evaluate(x, index)
        langevin_step(
            x,
            score,
            entry(self._alphas, index),
            self._key,
            sample_index,
            step,
            sigma=entry(self._sigmas, index) if self._times_sigma else None,
            amplitude=None if self._amplitudes is None else entry(self._amplitudes, index),
            mix=mix,
            out=x,
        )
        return (index + 1).clamp(max=last) if self._consistent else index

    def _last_evaluation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift = self._denoising_shift(x)
        return x + self._rate * shift if self._consistent else x.clone(), x + shift
