"""Exact second-order Taylor mode: a model run on truncated series x0 + t x1 + t^2/2 x2.

Each torch function in the model's ``forward`` is replaced by its rule for series (Griewank &
Walther 2008, ch. 13): value, first and second derivative along a direction cost one forward pass of
three times the width, and no graph of a gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from scorekit.derivatives.propagation import (
    ELEMENTWISE,
    JOINING,
    STRUCTURAL,
    WEIGHTED,
    Propagated,
    Rule,
    arithmetic,
)


class Jet(Propagated):
    """A series value + t first + t^2/2 second, three tensors of one shape."""

    def __init__(self, value: Tensor, first: Tensor, second: Tensor) -> None:
        self.value, self.first, self.second = value, first, second

    @property
    def shape(self) -> torch.Size:
        """The shape of each of the three."""
        return self.value.shape


def second_order_jet(model: Callable[[Any], Any], x: Tensor, v: Tensor) -> Jet:
    """Return f(x), its first and its second derivative along v, of a model's output at (B, ...).

    Exact up to rounding where f is twice differentiable, and differentiable by the model's
    parameters. Raises NotImplementedError, naming the function, where the model calls one without a
    rule.
    """
    jet = model(Jet(x, v, torch.zeros_like(x)))
    if not isinstance(jet, Jet):
        raise NotImplementedError(
            f"the model made a {type(jet).__name__} of a Jet: it calls something torch does not "
            "hand on to its argument"
        )
    return jet


def _add(a: Any, b: Any) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    if isinstance(b, Jet):
        return Jet(a.value + b.value, a.first + b.first, a.second + b.second)
    value = a.value + b
    return Jet(value, a.first.expand_as(value), a.second.expand_as(value))


def _mul(a: Any, b: Any) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    if not isinstance(b, Jet):
        return Jet(a.value * b, a.first * b, a.second * b)
    return Jet(
        a.value * b.value,
        a.first * b.value + a.value * b.first,
        a.second * b.value + 2 * a.first * b.first + a.value * b.second,
    )


def _elementwise(derivatives: Rule) -> Rule:
    def rule(x: Jet, *args: Any, **kwargs: Any) -> Jet:
        value, slope, bend = derivatives(x.value, *args, **kwargs)
        return Jet(value, slope * x.first, bend * x.first.square() + slope * x.second)

    return rule


def _weighted(function: Rule) -> Rule:
    def rule(x: Jet, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Jet:
        # One call for both: weights are read once.
        derivatives = function(torch.cat([x.first, x.second]), weight, None, *args, **kwargs)
        first, second = derivatives.chunk(2)
        return Jet(function(x.value, weight, bias, *args, **kwargs), first, second)

    return rule


def _structural(function: Rule) -> Rule:
    def rule(x: Jet, *args: Any, **kwargs: Any) -> Jet:
        return Jet(*[function(part, *args, **kwargs) for part in (x.value, x.first, x.second)])

    return rule


def _joining(function: Rule) -> Rule:
    def rule(parts: Any, dim: int = 0) -> Jet:
        jets = [p if isinstance(p, Jet) else Jet(p, *[torch.zeros_like(p)] * 2) for p in parts]
        series = ([j.value for j in jets], [j.first for j in jets], [j.second for j in jets])
        return Jet(*[function(terms, dim) for terms in series])

    return rule


def _matmul(a: Any, b: Any) -> Jet:
    if isinstance(a, Jet):
        return Jet(a.value @ b, a.first @ b, a.second @ b)
    return Jet(a @ b.value, a @ b.first, a @ b.second)


Jet.rules = {
    **arithmetic(_add, _mul, _matmul),
    "chunk": Jet.chunk,
    "mean": Jet.mean,
    "avg_pool2d": _structural(avg_pool2d),
    **{name: _elementwise(derivatives) for name, derivatives in ELEMENTWISE.items()},
    **{name: _weighted(function) for name, function in WEIGHTED.items()},
    **{name: _structural(function) for name, function in STRUCTURAL.items()},
    **{name: _joining(function) for name, function in JOINING.items()},
}
