"""Techniques 1, 2 and 4 of Song & Ermon (2020): noise scales and Langevin step size from data.

Beside Technique 4 stand two rules for where it fails: one step at each scale, and consistent
annealed sampling.

Technique 3 (scores divided by sigma) is :class:`scorekit.networks.ScoreNetwork`, Technique 5 (EMA)
is :mod:`scorekit.ema`. Standard deviations are in units of pixels in [0, 1].
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.special import ndtr
from torch import Tensor

from kernels.max_pairwise_distance import max_pairwise_distance

#: Probability of the three-sigma interval: coverage as gamma tends to 1 (Sec. 3.2).
MAX_COVERAGE = float(ndtr(3.0) - ndtr(-3.0))
#: Beyond these, neighbouring scales or squared ones are one number, or none, in single precision.
MIN_SIGMA, MAX_SIGMA, MAX_LEVELS = 1e-12, 1e12, 100_000
#: The most Langevin steps at a noise scale, a thousand times any published number.
MAX_STEPS_EACH = 100_000
_TIGHT = {"xatol": 1e-10, "maxiter": 500}


def initial_noise_scale(
    images: Tensor | np.ndarray,
    *,
    subset_above: int = 60_000,
    subset_size: int = 10_000,
    seed: int = 0,
    block_size: int = 2048,
) -> float:
    """Return sigma_1 of Technique 1: the largest Euclidean distance between two training images.

    ``images`` is (N, ...), uint8 in [0, 255] or floating point in [0, 1]; the result is in units of
    pixels in [0, 1]. Above ``subset_above`` images, ``subset_size`` of them, drawn with ``seed``,
    are measured (App. B.1); the distance within these is exact. Raises ValueError for fewer than
    two images, where all of them are equal, and for other dtypes.
    """
    if len(images) < 2:
        raise ValueError(f"Technique 1 needs at least 2 images, got {len(images)}")
    if len(images) > subset_above:
        generator = np.random.Generator(np.random.Philox(key=seed))
        index = np.sort(generator.choice(len(images), size=subset_size, replace=False))
        images = images[index]
    if isinstance(images, np.ndarray):
        # Copied because torch refuses to promise not to write to a read-only memory map.
        images = torch.from_numpy(np.array(images))
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}: uint8 or floating point is needed")
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    distance, _ = max_pairwise_distance(images.flatten(1), block_size=block_size)
    if distance == 0:
        raise ValueError("all images are equal: Technique 1 would give sigma_1 = 0")
    return distance / scale


def coverage(gamma: float, dim: int) -> float:
    """Return the radial overlap of neighbouring noise scales with ratio ``gamma`` > 1 (Sec. 3.2).

    Phi(sqrt(2D)(gamma - 1) + 3 gamma) - Phi(sqrt(2D)(gamma - 1) - 3 gamma), with D = ``dim``.
    """
    shift = math.sqrt(2 * dim) * (gamma - 1)
    # The upper tails are subtracted: for large shifts the CDFs themselves are both 1.
    return float(ndtr(3 * gamma - shift) - ndtr(-3 * gamma - shift))


def noise_scale_ratio(dim: int, target_coverage: float = 0.5) -> float:
    """Return gamma = sigma_{i-1} / sigma_i of Technique 2: the root of ``coverage`` = C.

    ``dim`` is the number of pixels times channels (>= 1) and C is in (0, 0.9973). Raises ValueError
    outside these ranges, and where D is so small that no ratio brings the overlap down to C.
    """
    if dim < 1:
        raise ValueError(f"dim = {dim} must be at least 1")
    if not 0 < target_coverage < MAX_COVERAGE:
        raise ValueError(f"coverage = {target_coverage} must lie in (0, {MAX_COVERAGE:.4f})")
    upper = 1.0
    while coverage(upper, dim) > target_coverage:
        upper += 0.5 * upper
        if upper > 1e6:
            raise ValueError(
                f"coverage = {target_coverage} is not reached at dim = {dim}: for D < 5 the "
                "overlap does not fall to 0; choose the noise scales by hand"
            )
    return float(
        brentq(lambda g: coverage(g, dim) - target_coverage, 1.0, upper, xtol=1e-14, rtol=1e-14)
    )


def n_noise_scales(sigma_begin: float, sigma_end: float, gamma: float) -> int:
    """Return L of Technique 2: 1 + ln(sigma_1 / sigma_L) / ln(gamma), to the nearest integer."""
    _check_sigmas(sigma_begin, sigma_end)
    if not gamma > 1:
        raise ValueError(f"gamma = {gamma} must be greater than 1")
    return max(2, math.floor(1.5 + math.log(sigma_begin / sigma_end) / math.log(gamma)))


def geometric_sigmas(sigma_begin: float, sigma_end: float, n_levels: int) -> Tensor:
    """Return the descending geometric ladder sigma_1 ... sigma_L, float32 (L,), index 0 largest."""
    _check_sigmas(sigma_begin, sigma_end)
    if not 2 <= n_levels <= MAX_LEVELS:
        raise ValueError(f"n_levels = {n_levels} must be at least 2 and at most {MAX_LEVELS}")
    return torch.from_numpy(_geomspace(sigma_begin, sigma_end, n_levels)).to(torch.float32)


@lru_cache(maxsize=64)  # the cells of a large grid have few ladders between them
def _geomspace(start: float, stop: float, n: int) -> np.ndarray:
    return np.geomspace(start, stop, n)


def ladder_ratio(sigmas: Sequence[float] | Tensor) -> float:
    """Return gamma = (sigma_1 / sigma_L)^(1 / (L - 1)) of a geometric ladder."""
    return float((float(sigmas[0]) / float(sigmas[-1])) ** (1 / (len(sigmas) - 1)))


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
    and published FID there exceeds 400 (CIFAR-10, :mod:`ablations.quoted`). The rule is this
    project's own. It is rounded to 5 digits: the minimum is flat, and machines shall agree. Needs
    gamma > 1, sigma_end > 0 and n_steps_each >= 1; raises ValueError otherwise.
    """
    _check_ladder(gamma, sigma_end, n_steps_each)

    def objective(log_rate: float) -> float:
        return steady_variance_ratio(math.exp(log_rate), gamma, 1.0, n_steps_each)

    # v* falls from infinity, where A gamma^2 = 1, to its minimum, and at r = 1 it is 2 for all T.
    lowest = math.log(-math.expm1(-math.log(gamma) / n_steps_each))
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


def _check_sigmas(sigma_begin: float, sigma_end: float) -> None:
    if not MIN_SIGMA <= sigma_end < sigma_begin <= MAX_SIGMA:
        raise ValueError(
            f"sigma_begin = {sigma_begin:g} and sigma_end = {sigma_end:g}: "
            f"{MIN_SIGMA:g} <= sigma_end < sigma_begin <= {MAX_SIGMA:g} is needed"
        )
