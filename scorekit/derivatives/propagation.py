"""Running a model on something other than tensors: what propagates through torch's functions.

A :class:`Propagated` value goes into a model's own ``forward``; each torch function it meets there
is replaced by a rule. The rules rest on three sorts of functions: those that act on each element,
with their first two derivatives here; those with weights; and those that only move, add or scale
elements.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

Rule = Callable[..., Any]


# Each returns f(x), f'(x) and f''(x), called as torch calls f.


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> tuple[Tensor, Tensor, Tensor]:
    sigmoid = torch.sigmoid(beta * x)
    linear = beta * x > threshold  # torch takes x itself there
    first = torch.where(linear, 1, sigmoid)
    second = torch.where(linear, 0, beta * sigmoid * (1 - sigmoid))
    return functional.softplus(x, beta, threshold), first, second


def _tanh(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.tanh(x)
    first = 1 - y * y
    return y, first, -2 * y * first


def _sigmoid(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.sigmoid(x)
    first = y * (1 - y)
    return y, first, first * (1 - 2 * y)


def _logsigmoid(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.sigmoid(-x)
    return functional.logsigmoid(x), y, -y * (1 - y)


def _silu(x: Tensor, inplace: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    y, first, second = _sigmoid(x)
    return x * y, y + x * first, 2 * first + x * second


def _elu(x: Tensor, alpha: float = 1, inplace: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    below = alpha * torch.exp(x.clamp(max=0))
    positive = x > 0
    second = torch.where(positive, 0, below)
    return functional.elu(x, alpha), torch.where(positive, 1, below), second


def _gelu(x: Tensor, approximate: str = "none") -> tuple[Tensor, Tensor, Tensor]:
    if approximate != "none":
        raise NotImplementedError("Taylor and curvature propagation know the exact GELU only")
    cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    pdf = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return x * cdf, cdf + x * pdf, (2 - x * x) * pdf


def _relu(x: Tensor, inplace: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    return torch.relu(x), (x > 0).to(x.dtype), torch.zeros_like(x)


def _leaky_relu(
    x: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    first = torch.where(x > 0, torch.ones_like(x), negative_slope)
    return x * first, first, torch.zeros_like(x)


def _exp(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.exp(x)
    return y, y, y


def _log(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first = 1 / x
    return torch.log(x), first, -first * first


def _square(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x * x, 2 * x, torch.full_like(x, 2)


def _sin(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.sin(x)
    return y, torch.cos(x), -y


def _cos(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.cos(x)
    return y, -torch.sin(x), -y


#: Functions of each element, by torch's names: f(x, ...) -> f(x), f'(x), f''(x).
ELEMENTWISE: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    "softplus": _softplus,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "logsigmoid": _logsigmoid,
    "log_sigmoid": _logsigmoid,
    "silu": _silu,
    "elu": _elu,
    "gelu": _gelu,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "exp": _exp,
    "log": _log,
    "square": _square,
    "sin": _sin,
    "cos": _cos,
}
#: f(x, weight, bias, ...), linear in x apart from the bias.
WEIGHTED: dict[str, Rule] = {
    "linear": functional.linear,
    "conv1d": torch.conv1d,
    "conv2d": torch.conv2d,
    "conv3d": torch.conv3d,
}
#: f(x, ...) whose results are sums of elements of x: coefficients are 0 and 1.
STRUCTURAL: dict[str, Rule] = {
    "sum": torch.sum,
    "flatten": torch.flatten,
    "reshape": torch.reshape,
    "unsqueeze": torch.unsqueeze,
    "squeeze": torch.squeeze,
    "permute": torch.permute,
    "transpose": torch.transpose,
    "flip": torch.flip,
    "getitem": operator.getitem,
}
#: f(list of x, dim), whose results are elements of the x.
JOINING: dict[str, Rule] = {"cat": torch.cat, "stack": torch.stack}


class Propagated:
    """What a model is run on; ``rules`` says what a torch function does to it, by its name.

    By name because torch hands on a function as itself, as a tensor's method and, under
    torch.compile, as an operator. Raises NotImplementedError, which names the function, where
    there is no rule.
    """

    rules: ClassVar[dict[str, Rule]] = {}

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = cls.rules.get(function.__name__)
        if rule is None:
            raise NotImplementedError(
                f"{cls.__name__} has no rule for {function.__name__}, which the model calls; "
                "scorekit.derivatives.propagation lists the functions that have one"
            )
        return rule(*args, **(kwargs or {}))

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self.__torch_function__(function, (), args, kwargs)

    def __add__(self, other: Any) -> Any:
        return self._call(torch.add, self, other)

    def __sub__(self, other: Any) -> Any:
        return self._call(torch.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._call(torch.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return self._call(torch.mul, self, other)

    def __matmul__(self, other: Any) -> Any:
        return self._call(torch.matmul, self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return self._call(torch.matmul, other, self)

    def __neg__(self) -> Any:
        return self._call(torch.mul, self, -1)

    def __truediv__(self, other: Any) -> Any:
        return self._call(torch.div, self, other)

    __radd__, __rmul__ = __add__, __mul__

    def __pow__(self, exponent: Any) -> Any:
        if exponent != 2:
            raise NotImplementedError(f"{type(self).__name__} has no rule for powers but 2")
        return self._call(torch.square, self)

    def __getitem__(self, index: Any) -> Any:
        return self._call(operator.getitem, self, index)

    @property
    def shape(self) -> torch.Size:
        """The shape of the value."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """The number of dimensions of the value."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """As ``Tensor.size``."""
        return self.shape if dim is None else self.shape[dim]

    def reshape(self, *shape: Any) -> Any:
        """As ``Tensor.reshape``."""
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return self._call(torch.reshape, self, sizes)

    view = reshape

    def permute(self, *dims: int) -> Any:
        """As ``Tensor.permute``."""
        return self._call(torch.permute, self, dims)

    def chunk(self, chunks: int, dim: int = 0) -> list[Any]:
        """As ``Tensor.chunk``."""
        size = -(-self.shape[dim] // chunks)
        before = (slice(None),) * (dim % self.ndim)
        starts = range(0, self.shape[dim], size)
        return [self[(*before, slice(start, start + size))] for start in starts]

    def mean(self, dim: Any = None, keepdim: bool = False) -> Any:
        """As ``Tensor.mean``."""
        dims = range(self.ndim) if dim is None else (dim,) if isinstance(dim, int) else dim
        count = math.prod([self.shape[d] for d in dims])
        return self._call(torch.sum, self, tuple(dims), keepdim=keepdim) / count


def arithmetic(add: Rule, mul: Rule, matmul: Rule) -> dict[str, Rule]:
    """Return the rules of operators, made of those of three: add and mul take either order.

    ``matmul`` takes its operands in order, one of which is no :class:`Propagated`.
    """

    def sub(a: Any, b: Any) -> Any:
        return add(a, -b)

    def rsub(a: Any, b: Any) -> Any:
        return add(-a, b)

    def div(a: Any, b: Any) -> Any:
        if isinstance(b, Propagated):
            raise NotImplementedError(f"{type(b).__name__} has no rule for division by it")
        return mul(a, 1 / b)

    def product(a: Any, b: Any) -> Any:
        if isinstance(a, Propagated) and isinstance(b, Propagated):
            raise NotImplementedError(f"{type(b).__name__} has no rule for matmul of two of them")
        if torch.compiler.is_compiling() and not isinstance(a, Propagated):
            # Dynamo (torch 2.14) hands on x @ w as matmul(w, x), like w @ x.
            raise NotImplementedError(
                f"under torch.compile {type(b).__name__} @ tensor cannot be told from tensor @ "
                f"{type(b).__name__}: write torch.matmul(x, weight) in the model, or do not compile"
            )
        return matmul(a, b)

    return {
        **dict.fromkeys(("add", "__add__", "__radd__"), add),
        **dict.fromkeys(("mul", "__mul__", "__rmul__"), mul),
        **dict.fromkeys(("sub", "__sub__"), sub),
        "__rsub__": rsub,
        **dict.fromkeys(("div", "__truediv__"), div),
        **dict.fromkeys(("__rdiv__", "__rtruediv__"), lambda a, b: div(b, a)),
        **dict.fromkeys(("matmul", "__matmul__"), product),
        "__rmatmul__": lambda a, b: product(b, a),
    }


def _method(function: Any) -> Callable[..., Any]:
    def method(self: Propagated, *args: Any, **kwargs: Any) -> Any:
        return self._call(function, self, *args, **kwargs)

    return method


# As a Tensor has them.
for _name in ("sum", "flatten", "unsqueeze", "squeeze", "transpose"):
    setattr(Propagated, _name, _method(getattr(torch, _name)))
for _name in ("tanh", "sigmoid", "relu", "exp", "log", "square", "sin", "cos"):
    setattr(Propagated, _name, _method(getattr(torch, _name)))
