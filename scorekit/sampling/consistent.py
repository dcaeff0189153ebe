"""Consistent annealed sampling (Jolicoeur-Martineau et al. 2020, arXiv:2009.05475): its numbers.

One step per noise scale, x + eta sigma_i^2 s(x, sigma_i) with eta = epsilon / sigma_L^2, shrinks
the noise sigma_i of x to (1 - eta) sigma_i; what is added makes it the next scale's, sigma_{i+1}.
A start of another variance than sigma_1^2 differs from it by (1 - eta)^(2i) as much after i steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# By how much eta may lie below its bound: ladders are rounded to float32.
_RATE_TOLERANCE = 1e-6


def refined_sigmas(sigmas: Tensor, n_steps_each: int) -> Tensor:
    """Return the ladder of ((L - 1) n + 1,) scales with n geometric steps from each to the next."""
    log = sigmas.double().log()
    fraction = torch.arange(n_steps_each, dtype=torch.float64, device=sigmas.device) / n_steps_each
    finer = log[:-1, None] + log.diff()[:, None] * fraction
    return torch.cat([finer.flatten(), log[-1:]]).exp().to(torch.float32)


def check_consistent_step_size(
    step_size: float, sigmas: Sequence[float] | Tensor, n_steps_each: int = 1
) -> None:
    """Raise ValueError unless consistent annealed sampling can step along the refined ladder.

    1 - gamma <= epsilon / sigma_L^2 < 1 + gamma is needed, with gamma < 1 the smallest ratio of
    neighbours: else a step leaves more noise than the next scale has. ``sigmas`` is the descending
    ladder before it is refined, of at least 2 scales.
    """
    ladder = torch.as_tensor(sigmas, dtype=torch.float64)
    if len(ladder) < 2:
        raise ValueError(f"consistent annealed sampling needs 2 noise scales, got {len(ladder)}")
    gamma = float((ladder[1:] / ladder[:-1]).min()) ** (1 / n_steps_each)
    variance = float(ladder[-1]) ** 2
    if not 1 - gamma - _RATE_TOLERANCE <= step_size / variance < 1 + gamma:
        raise ValueError(
            f"step_size = {step_size:g} does not suit consistent annealed sampling: it must lie in "
            f"[(1 - gamma) sigma_end^2, (1 + gamma) sigma_end^2) = "
            f"[{(1 - gamma) * variance:g}, {(1 + gamma) * variance:g}), where gamma = {gamma:.6g} "
            f"is the ratio of noise scales one step apart"
        )


def consistent_amplitudes(rate: float, sigmas: Tensor) -> Tensor:
    """Return sigma_{i+1} sqrt(1 - ((1 - eta) / gamma)^2) of each scale, float64 (L,).

    ``rate`` is eta and gamma is sigma_{i+1} / sigma_i; the last scale's amplitude is 0.
    """
    variance = sigmas.double().square()
    added = variance[1:] - (1 - rate) ** 2 * variance[:-1]
    return torch.cat([added.clamp(min=0).sqrt(), added.new_zeros(1)])
