"""Scores and second directional derivatives by automatic differentiation, each way there is.

A model maps samples (B, ...) to log densities (B,), an energy model, or to scores (B, ...), a score
network; a sample's output is to depend on that sample alone.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from kernels.dispatch import plain_operations
from scorekit.derivatives.displacement import inner
from scorekit.derivatives.model_checks import refuse_compiled, refuse_compiled_graph
from scorekit.derivatives.taylor import second_order_jet

Model = Callable[[Tensor], Tensor]
ExactWay = Literal["double_backward", "forward_mode", "taylor"]


class SecondDerivatives(NamedTuple):
    """The derivatives of log p along K directions at each of B samples.

    ``slope`` v . s and ``curvature`` v . H v are (K, B); ``score`` s is (B, ...), or None where the
    way that was taken does not give it.
    """

    slope: Tensor
    curvature: Tensor
    score: Tensor | None


def score_of(model: Model, x: Tensor) -> Tensor:
    """Return the gradient of log p, (B, ...), by one backward pass, differentiable once more."""
    with plain_operations():
        if torch.compiler.is_compiling():
            return grad(lambda y: log_density(model, y).sum())(x)
        refuse_compiled(model, "double_backward")
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            log_p = log_density(model, x)
            refuse_compiled_graph(log_p, "double_backward")
            score = _gradient(log_p.sum(), x, create_graph=keep)
    return score


def second_derivatives(
    model: Model,
    x: Tensor,
    directions: Tensor,
    *,
    energy: bool,
    way: ExactWay,
    with_score: bool,
) -> SecondDerivatives:
    """Return slopes and curvatures along ``directions`` (K, B, ...), exact up to rounding.

    "double_backward" differentiates in reverse twice (a score network: once); "forward_mode" nests
    forward derivatives or, where ``with_score`` asks for all of an energy model's score, runs
    forward over reverse; "taylor" carries an energy model's second-order Taylor series through its
    operations, and gives no score. Each can be differentiated by the model's parameters, and
    evaluated within ``torch.no_grad``. Raises ValueError for a compiled model, whose second
    derivatives would be wrong; to compile, compile the whole loss.
    """
    if not torch.compiler.is_compiling():
        refuse_compiled(model, way)
    with plain_operations():
        if way == "taylor":
            return _by_taylor(model, x, directions)
        if way == "double_backward":
            if torch.compiler.is_compiling():
                return _by_reverse_transforms(model, x, directions, energy)
            return _by_double_backward(model, x, directions, energy)
        if energy and not with_score:
            return _by_nested_jvp(model, x, directions)
        return _by_jvp(score_field(model) if energy else model, x, directions)


def log_density(model: Model, x: Tensor) -> Tensor:
    """Return model(x), checked to be one number per sample (ValueError)."""
    log_p = model(x)
    if log_p.shape != x.shape[:1]:
        raise ValueError(
            f"an energy model returned shape {tuple(log_p.shape)} for samples of shape "
            f"{tuple(x.shape)}; log densities ({x.shape[0]},) are needed"
        )
    return log_p


def score_network(model: Model, x: Tensor) -> Tensor:
    """Return model(x), checked to have the samples' shape (ValueError)."""
    score = model(x)
    if score.shape != x.shape:
        raise ValueError(
            f"a score network returned shape {tuple(score.shape)} for samples of shape "
            f"{tuple(x.shape)}; the same shape is needed"
        )
    return score


def score_field(model: Model) -> Model:
    """Return the score of an energy model as a function that torch.func can transform."""
    return grad(lambda y: log_density(model, y).sum())


def _gradient(output: Tensor, x: Tensor, *, create_graph: bool) -> Tensor:
    if not output.requires_grad:  # the output does not depend on x
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(
        output, x, create_graph=create_graph, retain_graph=True, materialize_grads=True
    )
    return gradient


def _by_double_backward(
    model: Model, x: Tensor, directions: Tensor, energy: bool
) -> SecondDerivatives:
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        output = log_density(model, x) if energy else score_network(model, x)
        refuse_compiled_graph(output, "double_backward")
        score = _gradient(output.sum(), x, create_graph=True) if energy else output
        slopes = [inner(v, score) for v in directions]
        products = [_gradient(slope.sum(), x, create_graph=keep) for slope in slopes]
        curvatures = [inner(v, hv) for v, hv in zip(directions, products, strict=True)]
    found = torch.stack(slopes), torch.stack(curvatures), score
    return SecondDerivatives(*(found if keep else (t.detach() for t in found)))


def _by_reverse_transforms(
    model: Model, x: Tensor, directions: Tensor, energy: bool
) -> SecondDerivatives:
    # The same passes as torch.func transforms, which torch.compile traces without a graph break.
    field = score_field(model) if energy else lambda y: score_network(model, y)

    def slope(y: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        score = field(y)
        slopes = inner(v, score)
        return slopes.sum(), (slopes, score)

    slopes, curvatures = [], []
    for v in directions:
        product, (along, score) = grad(slope, has_aux=True)(x, v)
        slopes.append(along)
        curvatures.append(inner(v, product))
    return SecondDerivatives(torch.stack(slopes), torch.stack(curvatures), score)


def _by_nested_jvp(model: Model, x: Tensor, directions: Tensor) -> SecondDerivatives:
    x, keep = x.clone(), torch.is_grad_enabled()  # transforms refuse an expanded x

    def along(v: Tensor) -> tuple[Tensor, Tensor]:
        def slope(y: Tensor) -> Tensor:
            return jvp(lambda z: log_density(model, z), (y,), (v,))[1]

        first, second = jvp(slope, (x,), (v,))[:2]
        return first, second

    # Forward derivatives of some functions (silu) are there in grad mode only.
    with torch.enable_grad():
        slopes, curvatures = _over_directions(along, directions)
    if not keep:
        slopes, curvatures = slopes.detach(), curvatures.detach()
    return SecondDerivatives(slopes, curvatures, None)


def _by_jvp(field: Model, x: Tensor, directions: Tensor) -> SecondDerivatives:
    x = x.clone()

    def along(v: Tensor) -> tuple[Tensor, Tensor]:
        score, product = jvp(lambda y: score_network(field, y), (x,), (v,))[:2]
        return score, product

    scores, products = _over_directions(along, directions)
    slope = (directions * scores).flatten(2).sum(2)
    curvature = (directions * products).flatten(2).sum(2)
    return SecondDerivatives(slope, curvature, scores[0])


def _over_directions(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], directions: Tensor
) -> tuple[Tensor, Tensor]:
    if len(directions) == 1:
        first, second = function(directions[0])
        return first[None], second[None]
    return vmap(function)(directions)


def _by_taylor(model: Model, x: Tensor, directions: Tensor) -> SecondDerivatives:
    count, batch = directions.shape[:2]
    copies = x.repeat(count, *[1] * (x.ndim - 1))
    jet = second_order_jet(model, copies, directions.flatten(0, 1))
    if jet.value.shape != copies.shape[:1]:
        log_density(lambda _: jet.value, copies)
    return SecondDerivatives(
        jet.first.reshape(count, batch), jet.second.reshape(count, batch), None
    )
