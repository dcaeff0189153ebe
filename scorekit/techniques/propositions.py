"""Propositions 1 and 2 of Song & Ermon (2020), the analysis behind Techniques 1 and 2.

Proposition 3 is :func:`scorekit.techniques.step_size.langevin_variance_ratio`.
"""

import math

import torch
from scipy.special import gammaln
from torch import Tensor


def mixture_responsibilities(x: Tensor, centres: Tensor, sigma: float) -> Tensor:
    """Return r^(i)(x) of an equal-weight mixture of N(centre_i, sigma^2 I) (Prop. 1).

    ``x`` is (B, D), ``centres`` (N, D); the result (B, N) sums to 1 over its last axis.
    """
    squared = torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.softmax(-squared / (2 * sigma**2), dim=1)


def responsibility_bound(distance: float, sigma: float) -> float:
    """Return the bound of Eq. (3) on E[r^(j)(x)] under p^(i): exp(-d^2 / (8 sigma^2)) / 2."""
    return 0.5 * math.exp(-(distance**2) / (8 * sigma**2))


def radius_log_density(radius: Tensor, dim: int, sigma: float) -> Tensor:
    """Return log p(r) of r = ||x||_2 for x ~ N(0, sigma^2 I) in ``dim`` dimensions (Prop. 2).

    For large D this tends to N(sqrt(D) sigma, sigma^2 / 2).
    """
    constant = (dim / 2 - 1) * math.log(2) + float(gammaln(dim / 2)) + dim * math.log(sigma)
    return (dim - 1) * torch.log(radius) - radius.square() / (2 * sigma**2) - constant
