"""How far finite differences go, and in which direction."""

import logging
import math
from functools import lru_cache

import torch
from torch import Tensor

_log = logging.getLogger("scorekit")

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


def check_epsilon(epsilon: Tensor | float, x: Tensor, order: int) -> None:
    """Raise ValueError for a number epsilon that leaves samples (B, ...) where they are.

    Rounding to machine epsilon u leaves an error of about u |f| / delta^order, delta = epsilon /
    sqrt(dim): a warning is logged, once, where delta^order < 10 u. Tensors, on a device that would
    have to be waited for, are not looked at, and nothing is logged while torch.compile traces.
    """
    if isinstance(epsilon, Tensor):
        return
    dim, unit = x[0].numel(), torch.finfo(x.dtype).eps
    delta = epsilon / math.sqrt(dim)
    if not delta > unit:
        raise ValueError(
            f"epsilon = {epsilon:g} moves {dim} coordinates by {delta:.1g} each, which {x.dtype} "
            f"rounds away: about {default_epsilon(dim):.2g} is right for data of unit scale"
        )
    if delta**order < 10 * unit and not torch.compiler.is_compiling():
        _warn_of_rounding(epsilon, dim, x.dtype, order)


@lru_cache(maxsize=64)
def _warn_of_rounding(epsilon: float, dim: int, dtype: torch.dtype, order: int) -> None:
    _log.warning(
        "epsilon = %g in %d dimensions is small for a difference of order %d in %s: mostly rounding"
        " errors; scorekit.objectives.rounding.finite_difference_error measures them",
        *(epsilon, dim, order, dtype),
    )


def per_sample(values: Tensor | float, like: Tensor) -> Tensor | float:
    """Return values (B,), or one for all, so that they multiply ``like`` (B, ...) sample-wise."""
    if isinstance(values, Tensor) and values.ndim:
        return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
    return values


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each sample, (B,), of (B, ...) with (B, ...)."""
    return (a * b).flatten(1).sum(dim=1)


def basis(x: Tensor) -> Tensor:
    """Return the directions of the d coordinates at each sample of x (B, ...): (d, B, ...)."""
    dim = x[0].numel()
    eye = torch.eye(dim, dtype=x.dtype, device=x.device)
    return eye.reshape(dim, 1, *x.shape[1:]).expand(dim, *x.shape)


def displacement(v: Tensor, epsilon: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return epsilon v / ||v||, 0 for v = 0, and ||v|| / epsilon (B,), for directions (B, ...).

    The latter turns differences over the former into derivatives along v.
    """
    if isinstance(epsilon, Tensor):
        epsilon = epsilon.to(v.dtype)
    norm = v.flatten(1).norm(dim=1)
    return v * per_sample(epsilon / torch.where(norm > 0, norm, 1), v), norm / epsilon
