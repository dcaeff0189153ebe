"""Directional derivatives of any order by finite differences, and what can be made of them.

The T-th derivative along v from T + 1 independent evaluations of the function, run as one batch
("Efficient learning of generative models via finite-difference score matching", Pang et al. 2020).
The error is O(epsilon^2) for every T where the function is smooth, plus rounding of about
u |f| / epsilon^T for machine epsilon u. Each application has a counterpart by automatic
differentiation, which has neither error.
"""

import math

from torch import Tensor

#: Default displacement in units of sqrt(dimension): the size of each coordinate's step.
RELATIVE_EPSILON = 0.02
#: The same displacement is at most this part of the noise scale.
NOISE_FRACTION = 0.2


def default_epsilon(dim: int, sigma: Tensor | float | None = None) -> Tensor | float:
    """Return the length of a finite difference's displacement: delta sqrt(dim), delta = 0.02.

    It moves each coordinate by about delta; for data of unit scale in float32, 0.005 to 0.15
    balance truncation, which grows as delta^2, and rounding, which falls as delta^2. With
    ``sigma``, the noise scale of the samples (a number or a tensor of any shape), delta is at most
    sigma / 5, as a density smoothed by noise varies over sigma. Raises ValueError for dim < 1 or a
    number sigma that is not positive.
    """
    if dim < 1:
        raise ValueError(f"dim = {dim} must be at least 1")
    if sigma is None:
        return RELATIVE_EPSILON * math.sqrt(dim)
    if isinstance(sigma, Tensor):
        return (NOISE_FRACTION * sigma).clamp(max=RELATIVE_EPSILON) * math.sqrt(dim)
    if not sigma > 0:
        raise ValueError(f"sigma = {sigma} must be positive")
    return min(RELATIVE_EPSILON, NOISE_FRACTION * sigma) * math.sqrt(dim)


def per_sample(values: Tensor | float, like: Tensor) -> Tensor | float:
    """Return values (B,), or one for all, so that they multiply ``like`` (B, ...) sample-wise."""
    if isinstance(values, Tensor) and values.ndim:
        return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
    return values


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each sample, (B,), of (B, ...) with (B, ...)."""
    return (a * b).flatten(1).sum(dim=1)
