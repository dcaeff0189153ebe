"""Score matching with the Hessian's trace by backward passes of curvature: two older baselines.

Both run a model on a record of its operations and go back through it with explicit rules, so that
the loss needs no graph of a gradient. Approximate back-propagation (Kingma & LeCun 2010, after
Becker & LeCun 1988) carries the Hessian's diagonal and drops what lies off it. Curvature
propagation (Martens, Sutskever & Swersky 2012) is unbiased: random signs enter at every nonlinear
operation, are carried back, and multiplied.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp
from torch.nn import functional
from torch.nn import grad as convolution
from torch.nn.functional import avg_pool2d

from scorekit.derivatives.autodiff import Model, log_density
from scorekit.derivatives.displacement import inner
from scorekit.derivatives.model_checks import refuse_batch_statistics
from scorekit.derivatives.propagation import (
    ELEMENTWISE,
    JOINING,
    STRUCTURAL,
    WEIGHTED,
    Propagated,
    Rule,
    arithmetic,
)

_Back = Callable[[Tensor], Tensor]


class Node(Propagated):
    """A value, and how it came about.

    ``inputs`` holds, for each value it was made of, g -> J^T g and h -> (J o J)^T h, and ``bend``
    the second derivative of an elementwise function; ``product`` marks one of two values.
    """

    def __init__(
        self,
        value: Tensor,
        tape: "list[Node]",
        inputs: "tuple[tuple[Node, _Back, _Back], ...]" = (),
        *,
        bend: Tensor | None = None,
        product: bool = False,
    ) -> None:
        self.value, self.tape, self.inputs = value, tape, inputs
        self.bend, self.product = bend, product
        tape.append(self)

    @property
    def shape(self) -> torch.Size:
        """The shape of the value."""
        return self.value.shape


def approximate_backpropagation_loss(model: Model, x: Tensor) -> Tensor:
    """Return 1/2 ||s||^2 + an approximate tr H of an energy model at x (B, ...), as (B,).

    The Hessian's diagonal h goes back through y = W x as (W o W)^T h and through y = f(x) as
    f'^2 h + f'' g, as if it were all of it: exact with one hidden layer, biased with more. The
    score is exact. ``model`` is to consist of the operations of
    :mod:`scorekit.derivatives.propagation`; raises NotImplementedError, naming the function, for
    others, and ValueError as :func:`scorekit.objectives.score_matching.score_matching_loss`.
    """
    tape, gradient = _record(model, x, "approximate back-propagation")
    diagonal: dict[Node, Tensor] = {}
    for node in reversed(tape):
        h = diagonal.get(node)
        for of, _, back_squared in node.inputs:
            if h is not None:
                _accumulate(diagonal, of, back_squared(h))
            if node.bend is not None:
                _accumulate(diagonal, of, node.bend * gradient[node])
    start = tape[0]
    trace = diagonal[start].flatten(1).sum(1) if start in diagonal else 0
    return _loss(gradient, start, trace)


def curvature_propagation_loss(model: Model, x: Tensor, signs: Callable[[int], Tensor]) -> Tensor:
    """Return 1/2 ||s||^2 + an unbiased estimate of tr H of an energy model at x (B, ...), as (B,).

    H = sum J^T M J over the nonlinear operations, M an operation's own curvature and J the Jacobian
    of its input; with random signs r at each, the carried-back sums u of J^T M r and w of J^T r
    have E[u o w] = diag H. (A pair of real vectors in place of one with square roots of M, which
    are complex where M is negative and have no gradient where it is zero.) ``signs`` (n) returns n
    independent numbers of mean 0 and variance 1 for each sample, (B, n), as
    :func:`scorekit.objectives.directions.projections` does. Raises as
    :func:`approximate_backpropagation_loss`.
    """
    tape, gradient = _record(model, x, "curvature propagation")
    entries = [
        (node, i)
        for node in tape
        if node.bend is not None or node.product
        for i in range(len(node.inputs))
    ]
    sizes = [node.value.numel() // x.shape[0] for node, _ in entries]
    drawn = signs(sum(sizes)).to(x.dtype).split(sizes, dim=1)
    random = {
        entry: values.reshape(entry[0].shape) for entry, values in zip(entries, drawn, strict=True)
    }
    curved: dict[Node, Tensor] = {}
    plain: dict[Node, Tensor] = {}
    for node in reversed(tape):
        for i, (of, back, _) in enumerate(node.inputs):
            if node in plain:
                _accumulate(curved, of, back(curved[node]))
                _accumulate(plain, of, back(plain[node]))
            if (node, i) in random:
                other = random[node, 1 - i] if node.product else node.bend * random[node, i]
                _accumulate(curved, of, gradient[node] * other)
                _accumulate(plain, of, random[node, i])
    start = tape[0]
    return _loss(gradient, start, inner(curved[start], plain[start]) if start in plain else 0)


def _record(model: Model, x: Tensor, what: str) -> tuple[list[Node], dict[Node, Tensor]]:
    """Return the operations from x to log p in order, and the gradient with respect to each."""
    refuse_batch_statistics(model, what)
    tape: list[Node] = []
    start = Node(x, tape)
    output = model(start)  # type: ignore[arg-type]
    if not isinstance(output, Node):
        raise NotImplementedError(
            f"the model made a {type(output).__name__} of a Node: it calls something torch does "
            "not hand on to its argument"
        )
    log_density(lambda _: output.value, x)
    gradient: dict[Node, Tensor] = {output: torch.ones_like(output.value)}
    for node in reversed(tape):
        if node in gradient:
            for of, back, _ in node.inputs:
                _accumulate(gradient, of, back(gradient[node]))
    gradient.setdefault(start, torch.zeros_like(x))
    return [node for node in tape if node in gradient], gradient


def _accumulate(sums: dict[Node, Tensor], node: Node, term: Tensor) -> None:
    sums[node] = sums[node] + term if node in sums else term


def _loss(gradient: dict[Node, Tensor], start: Node, trace: Tensor | int) -> Tensor:
    score = gradient[start]
    return 0.5 * inner(score, score) + trace


def _linear(function: Rule) -> Rule:
    """Return the rule of a function whose results are sums of elements of its argument."""

    def rule(x: Node, *args: Any, **kwargs: Any) -> Node:
        value, pull = vjp(lambda y: function(y, *args, **kwargs), x.value)[:2]

        def back(g: Tensor) -> Tensor:
            return pull(g)[0]

        return Node(value, x.tape, ((x, back, back),))

    return rule


_expand = _linear(lambda x, shape: x.expand(shape))


def _add(a: Any, b: Any) -> Node:
    if not isinstance(a, Node):
        a, b = b, a
    if not isinstance(b, Node):
        value = a.value + b
        a = a if value.shape == a.shape else _expand(a, value.shape)
        return Node(value, a.tape, ((a, _same, _same),))
    value = a.value + b.value
    terms = [x if x.shape == value.shape else _expand(x, value.shape) for x in (a, b)]
    return Node(value, a.tape, tuple([(term, _same, _same) for term in terms]))


def _same(g: Tensor) -> Tensor:
    return g


def _times(factor: Any) -> tuple[_Back, _Back]:
    return lambda g: g * factor, lambda h: h * factor * factor


def _mul(a: Any, b: Any) -> Node:
    if not isinstance(a, Node):
        a, b = b, a
    value = a.value * (b.value if isinstance(b, Node) else b)
    a = a if a.shape == value.shape else _expand(a, value.shape)
    if not isinstance(b, Node):
        return Node(value, a.tape, ((a, *_times(b)),))
    b = b if b.shape == value.shape else _expand(b, value.shape)
    inputs = ((a, *_times(b.value)), (b, *_times(a.value)))
    return Node(value, a.tape, inputs, product=True)


def _elementwise(derivatives: Rule) -> Rule:
    def rule(x: Node, *args: Any, **kwargs: Any) -> Node:
        value, slope, bend = derivatives(x.value, *args, **kwargs)
        return Node(value, x.tape, ((x, *_times(slope)),), bend=bend)

    return rule


def _weighted(function: Rule) -> Rule:
    def rule(x: Node, weight: Tensor, bias: Tensor | None = None, *args: Any) -> Node:
        value = function(x.value, weight, bias, *args)
        if function is functional.linear:
            inputs = (x, lambda g: g @ weight, lambda h: h @ weight.square())
            return Node(value, x.tape, (inputs,))
        if args and isinstance(args[1], str):
            raise NotImplementedError(f"there is no rule for padding = {args[1]!r}; give numbers")
        to_input = getattr(convolution, f"{function.__name__}_input")
        inputs = (
            x,
            lambda g: to_input(x.shape, weight, g, *args),
            lambda h: to_input(x.shape, weight.square(), h, *args),
        )
        return Node(value, x.tape, (inputs,))

    return rule


def _matmul(a: Any, b: Any) -> Node:
    from_left = isinstance(a, Node)
    x, weight = (a, b) if from_left else (b, a)

    def product(y: Tensor, weight: Tensor) -> Tensor:
        return y @ weight if from_left else weight @ y

    value, pull = vjp(lambda y: product(y, weight), x.value)[:2]
    pull_squared = vjp(lambda y: product(y, weight.square()), x.value)[1]
    back: tuple[_Back, _Back] = (lambda g: pull(g)[0], lambda h: pull_squared(h)[0])
    return Node(value, x.tape, ((x, *back),))


def _avg_pool2d(x: Node, kernel_size: Any, *args: Any, **kwargs: Any) -> Node:
    if len(args) > 1 or kwargs.keys() - {"stride"}:
        raise NotImplementedError("there is no rule for avg_pool2d but with a stride alone")
    sides = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    stride = args[0] if args else kwargs.get("stride")
    summed = _linear(lambda y: avg_pool2d(y, kernel_size, stride, divisor_override=1))
    return _mul(summed(x), 1 / (sides[0] * sides[1]))


def _joining(function: Rule) -> Rule:
    def rule(parts: Any, dim: int = 0) -> Node:
        tape = next(part for part in parts if isinstance(part, Node)).tape
        nodes = [part if isinstance(part, Node) else Node(part, tape) for part in parts]
        value, pull = vjp(lambda *xs: function(xs, dim), *[node.value for node in nodes])[:2]

        def back(i: int) -> _Back:
            return lambda g: pull(g)[i]

        return Node(value, tape, tuple([(x, back(i), back(i)) for i, x in enumerate(nodes)]))

    return rule


Node.rules = {
    **arithmetic(_add, _mul, _matmul),
    "chunk": Node.chunk,
    "mean": Node.mean,
    "avg_pool2d": _avg_pool2d,
    **{name: _elementwise(derivatives) for name, derivatives in ELEMENTWISE.items()},
    **{name: _weighted(function) for name, function in WEIGHTED.items()},
    **{name: _linear(function) for name, function in STRUCTURAL.items()},
    **{name: _joining(function) for name, function in JOINING.items()},
}
