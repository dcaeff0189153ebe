"""Directional derivatives of any order by finite differences, and what can be made of them.

The T-th derivative along v from T + 1 independent evaluations of the function, run as one batch
("Efficient learning of generative models via finite-difference score matching", Pang et al. 2020).
The error is O(epsilon^2) for every T where the function is smooth, plus rounding of about
u |f| / epsilon^T for machine epsilon u. Each application has a counterpart by automatic
differentiation, which has neither error.
"""

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from kernels.dispatch import plain_operations
from scorekit.derivatives.displacement import (
    basis,
    check_epsilon,
    default_epsilon,
    displacement,
    inner,
    per_sample,
)
from scorekit.derivatives.model_checks import (
    refuse_batch_statistics,
    refuse_dropout,
    refuse_reduced_precision,
)

_log = logging.getLogger("scorekit")

Function = Callable[[Tensor], Tensor]


def weights(alphas: Sequence[float]) -> list[float]:
    """Return the beta with sum_k beta_k alpha_k^(2 j) = 0 for j < K - 1 and 1 for j = K - 1.

    The solution of V^T beta = e_K, V_ij = alpha_i^(2 j - 2) (Pang et al. 2020, Theorem 1), which is
    a divided difference: beta_k = prod_(i != k) 1 / (alpha_k^2 - alpha_i^2). Raises ValueError
    unless the alphas are distinct positive numbers.
    """
    if not alphas or len(set(alphas)) < len(alphas) or not all(0 < a < math.inf for a in alphas):
        raise ValueError(f"alphas = {list(alphas)} must be distinct positive numbers")
    return [1 / math.prod(a * a - b * b for b in alphas if b != a) for a in alphas]


def directional_derivative(
    f: Function,
    x: Tensor,
    v: Tensor,
    order: int,
    *,
    epsilon: Tensor | float | None = None,
    alphas: Sequence[float] | None = None,
    allow_reduced_precision: bool = False,
) -> Tensor:
    """Return the T-th derivative of t -> f(x + t v) at 0 for each sample, T = ``order`` >= 1.

    With K = ceil(T / 2) displacements h = alpha_k epsilon v / ||v|| to either side and, for even T,
    x itself, all T + 1 evaluated as one batch (copy after copy: x + h for each k, x - h, x):

        even T   T! / (2 epsilon^T) sum_k beta_k / alpha_k^2 [f(x + h) + f(x - h) - 2 f(x)]
        odd T    T! / (2 epsilon^T) sum_k beta_k / alpha_k [f(x + h) - f(x - h)]

    times ||v||^T. ``f`` maps (n, ...) to (n, ...), any trailing shape; ``x`` and ``v`` are
    (B, ...), ``epsilon`` is a number or (B,), by default :func:`default_epsilon`, and ``alphas``
    holds K distinct positive numbers, by default 1 to K. Raises ValueError for other arguments and,
    as :func:`scorekit.objectives.score_matching.score_matching_loss`, in reduced precision and for
    BatchNorm or dropout in training mode.
    """
    if order < 1:
        raise ValueError(f"order = {order} must be at least 1")
    if v.shape != x.shape:
        raise ValueError(f"v has shape {tuple(v.shape)}; {tuple(x.shape)} is needed")
    count = (order + 1) // 2
    alphas = range(1, count + 1) if alphas is None else alphas
    if len(alphas) != count:
        raise ValueError(f"order = {order} takes {count} alphas, not {len(alphas)}")
    betas = weights(alphas)
    if not allow_reduced_precision:
        refuse_reduced_precision(x, "a finite difference")
    refuse_batch_statistics(f, "a finite difference")
    refuse_dropout(f, "a finite difference")
    epsilon = default_epsilon(x[0].numel()) if epsilon is None else epsilon
    check_epsilon(epsilon, x, order)
    h, rate = displacement(v, epsilon)
    points = [x + alpha * h for alpha in alphas] + [x - alpha * h for alpha in alphas]
    even = order % 2 == 0
    values = f(torch.cat([*points, x] if even else points)).chunk(2 * count + even)
    total = torch.zeros_like(values[0])
    for k, (alpha, beta) in enumerate(zip(alphas, betas, strict=True)):
        plus, minus = values[k], values[count + k]
        if even:
            total = total + beta / alpha**2 * ((plus - values[-1]) - (values[-1] - minus))
        else:
            total = total + beta / alpha * (plus - minus)
    return 0.5 * math.factorial(order) * per_sample(rate**order, total) * total


def gradient_projection(
    f: Function, x: Tensor, v: Tensor, *, epsilon: Tensor | float | None = None
) -> Tensor:
    """Return v . grad f of each sample, (B,), for f (n, ...) -> (n,); two evaluations."""
    return directional_derivative(f, x, v, 1, epsilon=epsilon)


def gradient_norm_squared(
    f: Function, x: Tensor, v: Tensor, *, epsilon: Tensor | float | None = None
) -> Tensor:
    """Return (v . grad f)^2, (B,): for E[v v^T] = I its mean over v is ||grad f||^2."""
    return gradient_projection(f, x, v, epsilon=epsilon).square()


def hessian_trace(
    f: Function, x: Tensor, v: Tensor, *, epsilon: Tensor | float | None = None
) -> Tensor:
    """Return v . H v, (B,), by three evaluations: for E[v v^T] = I its mean over v is tr H."""
    return directional_derivative(f, x, v, 2, epsilon=epsilon)


def hessian_frobenius_norm_squared(
    f: Function, x: Tensor, v: Tensor, w: Tensor, *, epsilon: Tensor | float | None = None
) -> Tensor:
    """Return (v . H w)^2, (B,), by six evaluations: its mean over v and w is ||H||_F^2.

    For independent v and w with E[v v^T] = E[w w^T] = I. By polarisation, v . H w is a quarter of
    the second derivative along v + w less that along v - w, so no gradient is needed.
    """
    if isinstance(epsilon, Tensor) and epsilon.ndim:
        epsilon = epsilon.repeat(2)
    pair = torch.cat([v + w, v - w])
    along = directional_derivative(f, torch.cat([x, x]), pair, 2, epsilon=epsilon)
    total, difference = along.chunk(2)
    return (0.25 * (total - difference)).square()


@plain_operations()
def directional_derivative_autograd(f: Function, x: Tensor, v: Tensor, order: int) -> Tensor:
    """Return :func:`directional_derivative` by ``order`` nested forward derivatives."""
    if order < 1:
        raise ValueError(f"order = {order} must be at least 1")
    derivative = f
    for _ in range(order):
        derivative = _along(derivative, v)
    return derivative(x)


def _along(f: Function, v: Tensor) -> Function:
    return lambda y: jvp(f, (y,), (v,))[1]


def gradient_projection_autograd(f: Function, x: Tensor, v: Tensor) -> Tensor:
    """Return :func:`gradient_projection` by automatic differentiation."""
    return directional_derivative_autograd(f, x, v, 1)


def gradient_norm_squared_autograd(f: Function, x: Tensor, v: Tensor | None = None) -> Tensor:
    """Return :func:`gradient_norm_squared` of the same v or, without v, ||grad f||^2 itself."""
    if v is not None:
        return gradient_projection_autograd(f, x, v).square()
    with plain_operations():
        gradient = grad(lambda y: f(y).sum())(x)
    return inner(gradient, gradient)


def hessian_trace_autograd(f: Function, x: Tensor, v: Tensor | None = None) -> Tensor:
    """Return :func:`hessian_trace` of the same v or, without v, tr H itself (d derivatives)."""
    if v is not None:
        return directional_derivative_autograd(f, x, v, 2)
    along = vmap(lambda e: directional_derivative_autograd(f, x, e, 2))
    return along(basis(x)).sum(dim=0)


def hessian_frobenius_norm_squared_autograd(
    f: Function, x: Tensor, v: Tensor | None = None, w: Tensor | None = None
) -> Tensor:
    """Return :func:`hessian_frobenius_norm_squared` of the same v and w or, without, ||H||_F^2.

    The latter takes d Hessian-vector products, forward over reverse.
    """
    if (v is None) != (w is None):
        raise ValueError("v and w come together")
    gradient = grad(lambda y: f(y).sum())
    with plain_operations():
        if v is not None and w is not None:
            return inner(v, jvp(gradient, (x,), (w,))[1]).square()
        products = vmap(lambda e: jvp(gradient, (x,), (e,))[1])(basis(x))
    return products.flatten(2).square().sum(dim=(0, 2))
