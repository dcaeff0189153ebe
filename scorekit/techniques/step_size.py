"""Technique 4: the step size of annealed Langevin dynamics."""

import math

import numpy as np
from torch import Tensor

#: The most Langevin steps at a noise scale, a thousand times any published number.
MAX_STEPS_EACH = 100_000
_TIGHT = {"xatol": 1e-10, "maxiter": 500}


def langevin_variance_ratio(
    epsilon: float | np.ndarray, gamma: float, sigma_end: float, n_steps_each: int
) -> float | np.ndarray:
    """Return s_T^2 / sigma_i^2 after T Langevin steps at one noise scale (Prop. 3, Eq. 4).

    1 means that samples arrive with the variance of the scale they were run at; ``epsilon`` is a
    number or an array > 0. For epsilon >= 2 sigma_L^2 the dynamics diverge.
    """
    rate = np.asarray(epsilon, dtype=np.float64) / sigma_end**2
    contraction = (1 - rate) ** 2
    # 2 rate / (1 - (1 - rate)^2), simplified: the quotient cancels for small rates.
    stationary = 2 / (2 - rate)
    ratio = contraction**n_steps_each * (gamma**2 - stationary) + stationary
    return float(ratio) if ratio.ndim == 0 else ratio


def langevin_step_size(
    gamma: float, sigma_end: float, n_steps_each: int, *, rtol: float = 1e-3
) -> float:
    """Return epsilon of Technique 4: the minimiser of |Eq. (4) - 1| over a log-spaced grid.

    The grid is refined around its best point until that moves by less than ``rtol`` relative. The
    objective need not have a root, so it is minimised and not solved. Needs gamma > 1,
    sigma_end > 0 and n_steps_each >= 1, else ValueError.
    """
    _check_ladder(gamma, sigma_end, n_steps_each)
    low, high = math.log(1e-6 * sigma_end**2), math.log(2 * sigma_end**2)
    best = math.inf
    while True:
        grid = np.exp(np.linspace(low, high, 2001)[1:-1])
        objective = np.abs(langevin_variance_ratio(grid, gamma, sigma_end, n_steps_each) - 1)
        at = int(np.argmin(objective))
        previous, best = best, float(grid[at])
        spacing = (high - low) / 2000
        if abs(best - previous) <= rtol * best and spacing <= rtol:
            return best
        low, high = math.log(best) - 2 * spacing, math.log(best) + 2 * spacing


def check_n_steps_each(n_steps_each: int) -> None:
    """Raise ValueError unless T lies in [1, ``MAX_STEPS_EACH``]."""
    if not 1 <= n_steps_each <= MAX_STEPS_EACH:
        raise ValueError(
            f"n_steps_each = {n_steps_each} must be at least 1 and at most {MAX_STEPS_EACH}"
        )


def steady_variance_ratio(
    epsilon: float, gamma: float, sigma_end: float, n_steps_each: int
) -> float:
    """Return v*, what s_T^2 / sigma_i^2 tends to along the ladder of ratio ``gamma``.

    Eq. (4) lets samples arrive at a noise scale with the variance of the one before; in fact they
    arrive with what that left, so with A = (1 - r)^(2T), r = epsilon / sigma_L^2 and
    B = (1 - A) 2 / (2 - r) the ratio obeys v' = A gamma^2 v + B, and v* = B / (1 - A gamma^2).
    It is infinite where A gamma^2 >= 1: the excess then grows from scale to scale.
    """
    rate = epsilon / sigma_end**2
    kept = (1 - rate) ** (2 * n_steps_each)
    if kept * gamma**2 >= 1:
        return math.inf
    return 2 / (2 - rate) * (1 - kept) / (1 - kept * gamma**2)


def steady_state_step_size(gamma: float, sigma_end: float, n_steps_each: int) -> float:
    """Return the epsilon that minimises v* (:func:`steady_variance_ratio`), which exceeds 1.

    Made for few steps at each noise scale: at T = 1 Technique 4's epsilon has v* = 2 on any ladder,
    and published FID there exceeds 400 (CIFAR-10, :mod:`ablations.studies.ncsnv2.quoted`). The rule
    is this project's own. It is rounded to 5 digits: the minimum is flat, and machines shall agree.
    Needs gamma > 1, sigma_end > 0 and n_steps_each >= 1; raises ValueError otherwise.
    """
    _check_ladder(gamma, sigma_end, n_steps_each)

    def objective(log_rate: float) -> float:
        return steady_variance_ratio(math.exp(log_rate), gamma, 1.0, n_steps_each)

    # v* falls from infinity, where A gamma^2 = 1, to its minimum, and at r = 1 it is 2 for all T.
    lowest = math.log(-math.expm1(-math.log(gamma) / n_steps_each))
    from scipy.optimize import minimize_scalar  # slow to import, and a worker has no need of it

    found = minimize_scalar(objective, bounds=(lowest, 0.0), method="bounded", options=_TIGHT)
    return float(f"{math.exp(float(found.x)) * sigma_end**2:.4e}")


#: c of :func:`consistent_step_size`.
CONSISTENT_FACTOR = 1.4


def consistent_step_size(gamma: float, sigma_end: float, n_steps_each: int) -> float:
    """Return epsilon of consistent annealed sampling, c (1 - 1 / gamma_eff) sigma_L^2, c = 1.4.

    gamma_eff = gamma^(1/n) is the ratio of neighbours of the ladder that n = ``n_steps_each``
    refines. c = 1 denoises one scale exactly and adds no noise. c = 1.4 was read off the FID curves
    of Jolicoeur-Martineau et al. 2020 (CIFAR-10, adversarially trained networks, n = 1, 5, 15),
    whose best are at 1.25 to 1.37 without and 1.46 to 1.5 with the denoising step; other data and
    networks may have another. epsilon / sigma_L^2 is 1 at most, for coarse ladders: all noise goes
    and is drawn anew. Needs gamma > 1, sigma_end > 0, n_steps_each >= 1; ValueError otherwise.
    """
    _check_ladder(gamma, sigma_end, n_steps_each)
    shrinkage = -math.expm1(-math.log(gamma) / n_steps_each)
    return min(CONSISTENT_FACTOR * shrinkage, 1.0) * sigma_end**2


#: r of :func:`snr_step_size`, the value of Song et al. 2021 for CIFAR-10.
SNR = 0.16


def snr_step_size(score: Tensor, noise: Tensor, snr: float = SNR) -> Tensor:
    """Return epsilon = 2 (r |z| / |s|)^2 of each sample, (B,), of score and noise (B, ...).

    The corrector of Song et al. 2021 (arXiv:2011.13456, Algorithm 5): r = ``snr`` is a step's
    drift, epsilon |s|, over its noise, sqrt(2 epsilon) |z|. Norms are each sample's own, where
    theirs are means over the batch, on which a sample would then depend. epsilon is that of the
    step itself, and not Algorithm 1's at sigma_L.
    """
    return 2 * snr**2 * noise.flatten(1).square().sum(1) / score.flatten(1).square().sum(1)


def check_snr(snr: float) -> None:
    """Raise ValueError unless r of :func:`snr_step_size` is positive and finite."""
    if not 0 < snr < math.inf:
        raise ValueError(f"snr = {snr} must be greater than 0 and finite")


def affordable_steps(score_evaluations: int, n_levels: int) -> int:
    """Return T of Technique 4: as many steps at each of L noise scales as a budget allows.

    ``score_evaluations`` >= 1 is what a sample may take, the denoising step not counted. At least
    1, whatever the budget. Raises ValueError for numbers below 1.
    """
    for name, value in (("score_evaluations", score_evaluations), ("n_levels", n_levels)):
        if value < 1:
            raise ValueError(f"{name} = {value} must be at least 1")
    return max(1, score_evaluations // n_levels)


def check_step_size(epsilon: float, sigma_end: float) -> None:
    """Raise ValueError unless 0 < epsilon < 2 sigma_L^2, where Eq. (4) converges."""
    if not 0 < epsilon < 2 * sigma_end**2:
        raise ValueError(
            f"step_size = {epsilon:g} makes Langevin dynamics diverge (Eq. 4): "
            f"it must lie in (0, 2 sigma_end^2) = (0, {2 * sigma_end**2:g})"
        )


def _check_ladder(gamma: float, sigma_end: float, n_steps_each: int) -> None:
    if not gamma > 1:
        raise ValueError(f"gamma = {gamma} must be greater than 1")
    if not sigma_end > 0:
        raise ValueError(f"sigma_end = {sigma_end} must be greater than 0")
    check_n_steps_each(n_steps_each)
