"""The 2-D toy of finite-difference score matching: 0.8 N([5, 5], I) + 0.2 N([-5, -5], I).

From the authors' response, to reviewer 4. Score fields are compared on a grid over [-8, 8]^2, the
range of its Fig. A(d). Score matching cannot see the weights of components this far apart.
"""

import math

import torch
from scipy.special import ndtri
from torch import Tensor

from kernels.philox import Stream, philox_normal

WEIGHTS = (0.8, 0.2)
MEANS = ((5.0, 5.0), (-5.0, -5.0))
HALF_WIDTH = 8.0


def sample(key: Tensor, sample_index: Tensor, step: Tensor) -> Tensor:
    """Return one point per sample index, float32 (B, 2); arguments as in ``philox_normal``."""
    # No toy point is dequantised, so nothing else draws from this stream. Words 2 and 3 of the
    # counter are independent of the point's own two.
    z = philox_normal(key, sample_index, step, (4,), Stream.DEQUANTISATION)
    second = z[:, 2] < float(ndtri(WEIGHTS[1]))
    first_mean, second_mean = z.new_tensor(MEANS)
    return z[:, :2] + torch.where(second[:, None], second_mean, first_mean)


def _log_components(x: Tensor) -> Tensor:
    squared = (x[:, None] - x.new_tensor(MEANS)).square().sum(2)
    return x.new_tensor(WEIGHTS).log() - 0.5 * squared - math.log(2 * math.pi)


def log_density(x: Tensor) -> Tensor:
    """Return the log density, normalised, at points (B, 2): (B,)."""
    return torch.logsumexp(_log_components(x), dim=1)


def score(x: Tensor) -> Tensor:
    """Return the score at points (B, 2): the components' scores mean - x, averaged: (B, 2)."""
    return torch.softmax(_log_components(x), dim=1) @ x.new_tensor(MEANS) - x


def grid(n: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the centres of n x n equal cells of [-8, 8]^2: (n^2, 2), the first axis slowest."""
    if n < 1:
        raise ValueError(f"n = {n} must be at least 1")
    axis = ((torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 - 1) * HALF_WIDTH
    return torch.cartesian_prod(axis, axis).to(dtype)


def fisher_divergence(field: Tensor, reference: Tensor, weights: Tensor | None = None) -> float:
    """Return the mean of 1/2 ||field - reference||^2 over points; both fields are (N, D).

    ``weights`` (N,), not negative, need not sum to 1. With those of the density p at a grid's
    points and p's score as the reference this is the Fisher divergence of p from the field's
    density (Hyvarinen 2005); without, the mean over the square. Sums are float64.
    """
    squared = _squared_norm(field - reference)
    return 0.5 * _mean(squared, weights)


def relative_difference(field: Tensor, reference: Tensor, weights: Tensor | None = None) -> float:
    """Return sqrt(mean ||field - reference||^2 / mean ||reference||^2), (N, D) each.

    Means over points are weighted as in :func:`fisher_divergence`.
    """
    difference = _mean(_squared_norm(field - reference), weights)
    return math.sqrt(difference / _mean(_squared_norm(reference), weights))


def _squared_norm(field: Tensor) -> Tensor:
    return field.detach().to(torch.float64).square().sum(1)


def _mean(values: Tensor, weights: Tensor | None) -> float:
    if weights is None:
        return float(values.mean())
    weights = weights.detach().to(torch.float64)
    if weights.shape != values.shape or bool((weights < 0).any()) or not float(weights.sum()) > 0:
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} must be ({len(values)},), none negative and "
            "not all zero"
        )
    return float((values * weights).sum() / weights.sum())
