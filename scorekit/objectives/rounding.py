"""How wrong a finite-difference objective is at an epsilon and a dtype, and why."""

import logging
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from scorekit.derivatives.model_checks import modules_of
from scorekit.objectives.score_matching import Conditioned, Objective, score_matching_loss

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
    arguments as in :func:`scorekit.objectives.score_matching.score_matching_loss`. Raises as it
    does, and ValueError for a model without parameters and for one that is random: two evaluations
    differ.
    """
    if objective is None:
        objective = "fd_ssm" if energy else "fd_ssm_vr"

    def gradient(dtype: torch.dtype, epsilon: float) -> Tensor:
        copy = _copy(model, dtype)
        parameters = [p for module in modules_of(copy) for p in module.parameters(False)]
        parameters = [p for p in parameters if p.requires_grad]
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
                epsilon=torch.tensor(epsilon, device=x.device),  # measured, not warned of
                allow_reduced_precision=True,
            )
            found = torch.autograd.grad(loss.mean(), parameters, materialize_grads=True)
        return torch.cat([g.flatten().to(torch.float64) for g in found])

    coarse = gradient(torch.float64, epsilon)
    if not torch.equal(coarse, gradient(torch.float64, epsilon)):
        raise ValueError("the model is random: two evaluations at the same samples differ")
    truncation = 4 / 3 * (gradient(torch.float64, epsilon / 2) - coarse)
    norm = (coarse + truncation).norm()
    error = FiniteDifferenceError(
        epsilon=epsilon,
        dtype=dtype,
        truncation=float(truncation.norm() / norm),
        rounding=float((gradient(dtype, epsilon) - coarse).norm() / norm),
    )
    if error.rounding_dominates and not error.rounding <= negligible:
        _warn_once(error)
    return error


def _copy(model: nn.Module | Conditioned, dtype: torch.dtype) -> nn.Module | Conditioned:
    if isinstance(model, Conditioned):
        return replace(model, model=_copy(model.model, dtype))  # type: ignore[arg-type]
    return deepcopy(model).to(dtype)


def _warn_once(error: FiniteDifferenceError) -> None:
    if (error.epsilon, error.dtype) in _warned:
        return
    _warned.add((error.epsilon, error.dtype))
    _log.warning(
        "at epsilon = %g in %s rounding errors dominate: %.2g of the gradient's norm, truncation "
        "%.2g; a larger epsilon would do better",
        *(error.epsilon, error.dtype, error.rounding, error.truncation),
    )


_warned: set[tuple[float, torch.dtype]] = set()
