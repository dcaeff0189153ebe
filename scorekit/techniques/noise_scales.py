"""Techniques 1 and 2: the largest noise scale, and how many lie between it and the smallest."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from kernels.max_pairwise_distance import max_pairwise_distance

#: Probability of the three-sigma interval: coverage as gamma tends to 1 (Sec. 3.2).
MAX_COVERAGE = float(ndtr(3.0) - ndtr(-3.0))
#: Beyond these, neighbouring scales or squared ones are one number, or none, in single precision.
MIN_SIGMA, MAX_SIGMA, MAX_LEVELS = 1e-12, 1e12, 100_000


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
    from scipy.optimize import brentq  # slow to import, and a worker has no need of it

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
    check_ladder(sigma_begin, sigma_end, n_levels)
    return torch.from_numpy(_geomspace(sigma_begin, sigma_end, n_levels)).to(torch.float32)


@lru_cache(maxsize=64)  # the cells of a large grid have few ladders between them
def _geomspace(start: float, stop: float, n: int) -> np.ndarray:
    return np.geomspace(start, stop, n)


def rho_sigmas(sigma_begin: float, sigma_end: float, n_levels: int, rho: float = 7.0) -> Tensor:
    """Return Karras et al.'s descending ladder (2022, Eq. 5), float32 (L,), index 0 largest.

    sigma_i = (a + i / (L - 1) (b - a))^rho with a = sigma_1^(1/rho), b = sigma_L^(1/rho): evenly
    spaced for rho = 1, and the geometric ladder as rho goes to infinity; 7 lies between. Raises
    ValueError for no ladder and unless rho is finite and at least 1.
    """
    check_ladder(sigma_begin, sigma_end, n_levels)
    if not 1 <= rho < math.inf:
        raise ValueError(f"rho = {rho} must be at least 1 and finite")
    roots = np.linspace(sigma_begin ** (1 / rho), sigma_end ** (1 / rho), n_levels)
    sigmas = roots**rho
    sigmas[[0, -1]] = sigma_begin, sigma_end
    return torch.from_numpy(sigmas).to(torch.float32)


def ladder_ratio(sigmas: Sequence[float] | Tensor) -> float:
    """Return gamma = (sigma_1 / sigma_L)^(1 / (L - 1)) of a geometric ladder."""
    return float((float(sigmas[0]) / float(sigmas[-1])) ** (1 / (len(sigmas) - 1)))


def check_ladder(sigma_begin: float, sigma_end: float, n_levels: int) -> None:
    """Raise ValueError unless sigma_1, sigma_L and L make a ladder of distinct noise scales."""
    _check_sigmas(sigma_begin, sigma_end)
    if not 2 <= n_levels <= MAX_LEVELS:
        raise ValueError(f"n_levels = {n_levels} must be at least 2 and at most {MAX_LEVELS}")


def _check_sigmas(sigma_begin: float, sigma_end: float) -> None:
    if not MIN_SIGMA <= sigma_end < sigma_begin <= MAX_SIGMA:
        raise ValueError(
            f"sigma_begin = {sigma_begin:g} and sigma_end = {sigma_end:g}: "
            f"{MIN_SIGMA:g} <= sigma_end < sigma_begin <= {MAX_SIGMA:g} is needed"
        )
