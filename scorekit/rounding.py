"""How wrong a finite-difference objective is at an epsilon and a dtype, and which of two reasons."""

import logging
import math
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from scorekit.score_matching import Conditioned, Objective, score_matching_loss

_log = logging.getLogger("scorekit")


@dataclass(frozen=True, kw_only=True)
class FiniteDifferenceError:
    """Relative errors of the parameter gradient of a finite-difference objective's mean.

    ``truncation`` is what epsilon^2 leaves, ``rounding`` what the dtype loses, which grows as
    1 / epsilon^2 for an energy model; both in units of the exact gradient's norm.
    """

    epsilon: float
    dtype: torch.dtype
    truncation: float
    rounding: float

    @property
    def rounding_dominates(self) -> bool:
        """Whether a larger epsilon would do better; true of an error that is not finite."""
        return not self.rounding <= self.truncation


def finite_difference_error(
    model: nn.Module | Conditioned,
    x: Tensor,
    v: Tensor,
    epsilon: float,
    *,
    energy: bool,
    objective: Objective | None = None,
    dtype: torch.dtype = torch.float32,
    noise: Tensor | None = None,
    sigma: Tensor | float | None = None,
    negligible: float = 1e-3,
) -> FiniteDifferenceError:
    """Measure the errors of a finite-difference objective's gradient on one batch.

    With g(epsilon) the gradient in the parameters of copies of the model in float64, the truncation
    error is 4/3 ||g(epsilon) - g(epsilon / 2)||, by Richardson's extrapolation, and the rounding
    error ||g in ``dtype`` - g(epsilon)||. Products are rounded as they are set to be, so that
    within ``precision_context("tf32")`` this tells TF32's error. Logs a warning, once for each
    epsilon and dtype, where rounding dominates and is over ``negligible``.

    ``objective`` is by default fd_ssm of an energy model and fd_ssm_vr of a score network; other
    arguments as in :func:`scorekit.score_matching.score_matching_loss`. Raises as it does, and
    ValueError for a model without parameters and for one that is random: two evaluations differ.
    """
    if objective is None:
        objective = "fd_ssm" if energy else "fd_ssm_vr"

    def gradient(dtype: torch.dtype, epsilon: float) -> Tensor:
        copy = _copy(model, dtype)
        parameters = _parameters(copy)
        if not parameters:
            raise ValueError("the model has no parameters that require gradients")
        with torch.enable_grad():
            loss = score_matching_loss(
                copy,
                x.to(dtype),
                objective=objective,
                energy=energy,
                projection=v.to(dtype),
                noise=None if noise is None else noise.to(dtype),
                sigma=sigma.to(dtype) if isinstance(sigma, Tensor) else sigma,
                epsilon=epsilon,
                allow_reduced_precision=True,
            )
            found = torch.autograd.grad(loss.mean(), parameters, materialize_grads=True)
        return torch.cat([g.flatten().to(torch.float64) for g in found])

    exact = gradient(torch.float64, epsilon)
    if not torch.equal(exact, gradient(torch.float64, epsilon)):
        raise ValueError("the model gives another result at each evaluation: a finite difference")
    finer = gradient(torch.float64, epsilon / 2)
    scale = float((exact + 4 / 3 * (finer - exact)).norm())
    error = FiniteDifferenceError(
        epsilon=epsilon,
        dtype=dtype,
        truncation=4 / 3 * float((exact - finer).norm()) / scale,
        rounding=float((gradient(dtype, epsilon) - exact).norm()) / scale,
    )
    if error.rounding_dominates and not error.rounding <= negligible:
        _warn(epsilon, dtype, f"{error.rounding:.2g}", f"{error.truncation:.2g}")
    return error


@lru_cache(maxsize=64)
def _warn(epsilon: float, dtype: torch.dtype, rounding: str, truncation: str) -> None:
    _log.warning(
        "at epsilon = %s in %s rounding errors dominate: %s of the gradient's norm, truncation %s; "
        "a larger epsilon would do better",
        *(f"{epsilon:g}", dtype, rounding, truncation),
    )
