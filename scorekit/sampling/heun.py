"""The probability flow ODE by Heun's method, with or without churn (Karras et al. 2022).

Algorithms 1 and 2 of arXiv:2206.00364, with sigma(t) = t and s(t) = 1.
"""

import math
from typing import Any

import torch
from torch import Tensor

from scorekit.sampling.consistent import refined_sigmas
from scorekit.sampling.trajectory import Sampler, Score, check_refinable, check_scales, entry


class Heun(Sampler):
    """Heun's method on dx/dsigma = -sigma s(x, sigma); other arguments as :class:`Sampler`.

    ``sigmas`` (L,), L >= 2, is the descending ladder. Each step from a scale to the next is an
    Euler step and its correction by the slope there, two evaluations; the last step, Euler's to
    0, is the denoising one. ``n_steps_each`` = T > 1 refines the ladder as
    :class:`ReverseDiffusion` does. Network evaluations per sample: 2 (L - 1) T + 1.

    ``churn`` is S_churn of Algorithm 2: at scales within ``churn_range`` = (S_tmin, S_tmax) noise
    raises sigma by a factor 1 + min(churn / N, sqrt(2) - 1), N the scales of the refined ladder,
    before a step. ``churn_noise`` is S_noise. The scales so raised are on no ladder, so that churn
    needs ``times_sigma`` or ``takes_sigma``. The denoising step has no churn. Without it there is
    no noise after x_0 and nothing that interpolation could mix (ValueError).
    """

    n_memories = 2  # where a step began, and its slope there

    def __init__(
        self,
        score: Score,
        sigmas: Tensor,
        *,
        n_steps_each: int = 1,
        churn: float = 0.0,
        churn_range: tuple[float, float] = (0.0, math.inf),
        churn_noise: float = 1.0,
        **options: Any,
    ) -> None:
        check_scales("Heun's method", sigmas)
        check_refinable("Heun's method", n_steps_each, **options)
        if not 0 <= churn < math.inf:
            raise ValueError(f"churn = {churn} must be at least 0 and finite")
        if not 0 < churn_noise < math.inf:
            raise ValueError(f"churn_noise = {churn_noise} must be greater than 0 and finite")
        if churn and not (options.get("times_sigma") or options.get("takes_sigma")):
            raise ValueError(
                f"churn = {churn:g} evaluates the score between the noise scales of the ladder: it "
                "needs times_sigma or takes_sigma, hence a network of any scale, or must be 0"
            )
        ladder = refined_sigmas(sigmas, n_steps_each).double()
        low, high = churn_range
        churned = (ladder[:-1] >= low) & (ladder[:-1] <= high)
        raised = ladder[:-1] * (1 + min(churn / len(ladder), math.sqrt(2) - 1) * churned)
        # In the order in which they are evaluated, where that is not the ladder's.
        scales = torch.stack([raised, ladder[1:]], dim=1).flatten() if churn else ladder
        super().__init__(
            score,
            scales,
            n_levels=len(sigmas),
            steps_per_level=2 * n_steps_each,
            n_steps=2 * (len(ladder) - 1),
            **options,
        )
        self._sigma_begin = ladder[0].to(torch.float32)
        self._churns = churn > 0
        added = (raised.square() - ladder[:-1].square()).clamp(min=0).sqrt() * churn_noise
        self._added = added.to(torch.float32)
        self._shifts = (ladder[1:] - raised).to(torch.float32)

    def _mix(
        self, sample_index: Tensor, seed: int | None, angle: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        if seed is not None and not self._churns:
            raise ValueError(
                f"mix_seed = {seed}: Heun's method without churn has no noise to mix, and none "
                "other than x_0 that samples hang on; interpolate x_0, or set churn"
            )
        return super()._mix(sample_index, seed, angle)

    def _advance(
        self,
        x: Tensor,
        step: Tensor,
        sample_index: Tensor,
        mix: tuple[Tensor, Tensor] | None,
        memory: tuple[Tensor, ...],
    ) -> Tensor:
        last = len(self._shifts) - 1
        transition = (step // 2).clamp(max=last)
        first = step % 2 == 0
        began, slope = memory
        here = x
        if self._churns:
            z = self._noise(x, step, sample_index, mix)
            here = torch.where(first, x + entry(self._added, transition) * z, x)
            index, reached = step.clamp(max=2 * last + 1), 2 * transition + 1
        else:
            index, reached = torch.where(first, transition, transition + 1), transition + 1
        output = self._evaluate(here, index).to(x.dtype)
        # d = (x - D) / sigma = -sigma s.
        own = -output if self._times_sigma else -entry(self._sigmas, index) * output
        # The Euler step is taken back and done again with the mean of both slopes.
        began.copy_(torch.where(first, here, began))
        slope.copy_(torch.where(first, own, (slope + own) / 2))
        x.copy_(began + entry(self._shifts, transition) * slope)
        return reached
