"""Taylor mode through the operations that energy models are made of."""

import pytest
import torch
from torch import nn
from torch.func import jvp
from torch.nn import functional

from scorekit.derivatives.propagation import ELEMENTWISE
from scorekit.derivatives.taylor import Jet, second_order_jet

torch.manual_seed(0)
X, V = (torch.randn(4, 6, dtype=torch.float64) for _ in range(2))


def exact(model, x, v):
    """Return value, first and second derivative along v by nested forward derivatives."""

    def first(y):
        return jvp(model, (y,), (v,))[1]

    return model(x), *jvp(first, (x,), (v,))


def check(model, x=X, v=V):
    jet = second_order_jet(model, x, v)
    for found, right in zip((jet.value, jet.first, jet.second), exact(model, x, v), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


ACTIVATIONS = [
    nn.Softplus(),
    nn.Softplus(beta=3, threshold=2),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.LogSigmoid(),
    nn.SiLU(),
    nn.ELU(alpha=0.7),
    nn.GELU(),
    nn.ReLU(),
    nn.LeakyReLU(0.2),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations(activation):
    check(activation, 3 * X)


@pytest.mark.parametrize("name", ["exp", "log", "square", "sin", "cos", "tanh", "sigmoid", "relu"])
def test_functions_and_methods_of_each_element(name):
    x = X.abs() + 0.1 if name == "log" else X
    check(getattr(torch, name), x)
    check(lambda x: getattr(x, name)(), x)


def test_every_elementwise_function_is_among_those_tested():
    tested = {"softplus", "tanh", "sigmoid", "logsigmoid", "log_sigmoid", "silu", "elu", "gelu"}
    tested |= {"relu", "leaky_relu", "exp", "log", "square", "sin", "cos"}
    assert set(ELEMENTWISE) == tested


CONSTANT = torch.randn(6, dtype=torch.float64)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 1 - (2 - x) * 3,
        lambda x: CONSTANT + CONSTANT * x - x / CONSTANT,
        lambda x: CONSTANT - x,
        lambda x: x - CONSTANT,
        lambda x: (x[:, None, :] - CONSTANT.reshape(2, 3).repeat(1, 2)).square().sum(-1),
        lambda x: x * x.sin() * 2,
        lambda x: -(x**2) + x.mean(),
        lambda x: x[:, 1::2] * x[:, ::2],
        lambda x: x @ CONSTANT,
        lambda x: CONSTANT.diag() @ x.transpose(0, 1),
        lambda x: torch.matmul(x, CONSTANT.diag()).mean(1, keepdim=True),
        lambda x: torch.cat([x, CONSTANT.expand(4, 6), x.exp()], dim=1),
        lambda x: torch.stack([x, 2 * x], dim=2).flatten(1),
        lambda x: x.chunk(2, dim=1)[1] * torch.chunk(x, 4, dim=1)[0].sum(1, keepdim=True),
        lambda x: (
            x.reshape(4, 2, 3).permute(0, 2, 1).unsqueeze(1).squeeze(1).reshape(4, -1).view(2, 12)
        ),
        lambda x: functional.avg_pool2d(x.reshape(4, 1, 2, 3), 2),
        lambda x: torch.flip(x, [1]) + torch.sum(x, dim=1, keepdim=True) + x.ndim + x.size(1),
    ],
)
def test_arithmetic_and_what_moves_elements(function):
    check(function)


def test_layers_of_every_dimension():
    check(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2, bias=False)).double())
    for conv, shape in ((nn.Conv1d, (2, 5)), (nn.Conv2d, (2, 5, 4)), (nn.Conv3d, (2, 3, 3, 3))):
        x, v = (torch.randn(3, *shape, dtype=torch.float64) for _ in range(2))
        check(nn.Sequential(conv(2, 4, 3, stride=2, padding=1), nn.SiLU()).double(), x, v)


def test_functions_without_a_rule_are_named():
    with pytest.raises(NotImplementedError, match="Jet has no rule for softmax, which the model"):
        second_order_jet(lambda x: torch.softmax(x, 1), X, V)
    with pytest.raises(NotImplementedError, match="no rule for division by it"):
        second_order_jet(lambda x: torch.div(1, x), X, V)
    with pytest.raises(NotImplementedError, match="no rule for powers but 2"):
        second_order_jet(lambda x: x**3, X, V)
    with pytest.raises(NotImplementedError, match="no rule for matmul of two"):
        second_order_jet(lambda x: x @ x.transpose(0, 1), X, V)
    with pytest.raises(NotImplementedError, match="the exact GELU only"):
        second_order_jet(nn.GELU("tanh"), X, V)
    with pytest.raises(NotImplementedError, match="made a Tensor of a Jet"):
        second_order_jet(lambda x: x.value, X, V)
    assert isinstance(second_order_jet(lambda x: x, X, V), Jet)


@pytest.mark.parametrize("left", [True, False])
def test_an_operator_that_compilation_turns_around_is_refused(left):
    """Dynamo hands x @ w on as matmul(w, x): of square matrices the wrong product."""
    weight = CONSTANT.outer(CONSTANT)[:4, :4]
    square = X[:, :4], V[:, :4]

    def function(x, v):
        model = (lambda y: weight @ y) if left else (lambda y: y @ weight)
        return second_order_jet(model, x, v).first

    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"write torch.matmul\(x, weight\)"):
        torch.compile(function, fullgraph=True, backend="eager")(*square)
    torch._dynamo.reset()

    def right(x, v):
        return second_order_jet(lambda y: torch.matmul(y, weight) - weight, x, v).first

    found = torch.compile(right, fullgraph=True, backend="eager")(*square)
    torch.testing.assert_close(found, square[1] @ weight)
