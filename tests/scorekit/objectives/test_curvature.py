"""Approximate back-propagation and curvature propagation against whole Hessians."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import hessian, vmap

from kernels.philox import philox_key
from scorekit.objectives.curvature import (
    approximate_backpropagation_loss,
    curvature_propagation_loss,
)
from scorekit.objectives.directions import projections
from scorekit.objectives.score_matching import score_matching_loss


class Coupling(nn.Module):
    """Slices, concatenation, broadcasting and products, as flows and kernels have them."""

    def __init__(self):
        super().__init__()
        self.shift, self.gate = nn.Linear(3, 3), nn.Linear(3, 3)
        self.mixing = nn.Parameter(torch.randn(6, 6) / 3)
        self.centres = nn.Parameter(torch.randn(2, 6))

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        b = b * torch.sigmoid(self.gate(a)) - self.shift(a).tanh()
        z = torch.cat([a, b], dim=1) @ self.mixing
        distance = (z[:, None, :] - self.centres).square().sum(-1)
        return (-distance / 4).exp().mean(1) - 0.5 * z.square().sum(1)


class Convolutional(nn.Module):
    """Convolutions, a residual sum and average pooling."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.last = nn.Linear(2, 1)

    def forward(self, x):
        h = self.first(x.reshape(x.shape[0], 1, 2, 3))
        h = h + self.second(nn.functional.silu(h))
        h = nn.functional.avg_pool2d(h, 2)
        return self.last(nn.functional.silu(h).sum(dim=(2, 3))).squeeze(1)


def perceptron(depth):
    sizes = [6, *[5] * depth]
    layers = [nn.Sequential(nn.Linear(a, b), nn.Softplus()) for a, b in pairwise(sizes)]
    return nn.Sequential(*layers, nn.Linear(5, 1), nn.Flatten(0))


def build(name):
    torch.manual_seed(0)
    model = {
        "one hidden layer": lambda: perceptron(1),
        "three hidden layers": lambda: perceptron(3),
        "coupling": Coupling,
        "convolutional": Convolutional,
    }[name]().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2
    return model, torch.randn(3, 6, dtype=torch.float64)


NAMES = ("one hidden layer", "three hidden layers", "coupling", "convolutional")


def signs(batch):
    def draw(count):
        index = torch.arange(batch)
        drawn = projections("rademacher", philox_key(5), index, torch.tensor(0), (count,))
        return drawn.double()

    return draw


def curvature_batches(model, x, count, size):
    for step in range(count):
        key, index = philox_key(6), torch.arange(step * size, (step + 1) * size)

        def draw(n, key=key, index=index):
            return projections("rademacher", key, index, torch.tensor(0), (n,)).double()

        yield curvature_propagation_loss(model, x.repeat(size, 1), draw)


def exact_loss(model, x):
    return score_matching_loss(model, x, objective="exact_sm", energy=True)


def gradient(loss, model):
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def test_approximate_backpropagation_is_exact_with_one_hidden_layer_and_biased_with_more():
    model, x = build("one hidden layer")
    loss, exact = approximate_backpropagation_loss(model, x), exact_loss(model, x)
    torch.testing.assert_close(loss, exact)
    torch.testing.assert_close(gradient(loss.sum(), model), gradient(exact.sum(), model))
    model, x = build("three hidden layers")
    assert (approximate_backpropagation_loss(model, x) - exact_loss(model, x)).abs().min() > 1e-3


def test_approximate_backpropagation_is_the_recursion_of_the_diagonal():
    """h <- (W o W)^T h and f'^2 h + f'' g, written out for three layers of softplus."""
    model, x = build("three hidden layers")
    *layers, last, _ = model
    inputs, h = [], x
    for linear, _ in layers:
        inputs.append(linear(h))
        h = torch.nn.functional.softplus(inputs[-1])
    g = last.weight.expand(3, -1)
    diagonal = torch.zeros_like(g)
    for (linear, _), before in zip(reversed(layers), reversed(inputs), strict=True):
        slope = torch.sigmoid(before)
        diagonal = slope**2 * diagonal + slope * (1 - slope) * g
        diagonal, g = diagonal @ linear.weight**2, (slope * g) @ linear.weight
    expected = 0.5 * g.square().sum(1) + diagonal.sum(1)
    torch.testing.assert_close(approximate_backpropagation_loss(model, x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_curvature_propagation_is_unbiased_in_loss_and_gradient(name):
    model, x = build(name)
    n = 4000
    many = x[:1].repeat(n, 1)
    loss = curvature_propagation_loss(model, many, signs(n))
    exact = exact_loss(model, x[:1])
    assert loss.std() > 0
    assert abs(loss.mean() - exact) < 5 * loss.std() / math.sqrt(n)
    parts = torch.stack(
        [gradient(part.mean(), model) for part in curvature_batches(model, x[:1], 40, 100)]
    )
    error = (parts.mean(0) - gradient(exact.sum(), model)).abs()
    assert (error <= 6 * parts.std(0) / math.sqrt(len(parts)) + 1e-9).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_the_loss(name):
    """By finite differences in the parameters, with the same signs."""
    model, x = build(name)
    torch.manual_seed(1)
    direction = [torch.randn_like(p) for p in model.parameters()]
    for loss_of in (
        lambda: approximate_backpropagation_loss(model, x).sum(),
        lambda: curvature_propagation_loss(model, x, signs(3)).sum(),
    ):
        found = gradient(loss_of(), model) @ torch.cat([d.flatten() for d in direction])
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                for parameter, d in zip(model.parameters(), direction, strict=True):
                    parameter += step * d
                values.append(loss_of())
        with torch.no_grad():
            for parameter, d in zip(model.parameters(), direction, strict=True):
                parameter += 1e-5 * d
        torch.testing.assert_close(found, (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-7)


def test_a_quadratic_needs_no_luck():
    """With one elementwise curvature and no mixing, every draw of signs gives the exact trace."""
    x = torch.randn(3, 6, dtype=torch.float64)

    def energy(x):
        return -0.5 * x.square().sum(1) + 2 * x[:, 0]

    expected = exact_loss(energy, x)
    torch.testing.assert_close(curvature_propagation_loss(energy, x, signs(3)), expected)
    torch.testing.assert_close(approximate_backpropagation_loss(energy, x), expected)
    assert vmap(hessian(lambda y: energy(y[None])[0]))(x).diagonal(dim1=1, dim2=2).eq(-1).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1::2])
def test_both_compile_as_whole_losses(name):
    torch._dynamo.reset()
    model, x = build(name)
    drawn = signs(3)(200)
    for loss_of in (
        lambda x: approximate_backpropagation_loss(model, x),
        lambda x: curvature_propagation_loss(model, x, lambda count: drawn[:, :count]),
    ):
        loss = torch.compile(loss_of, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(loss, loss_of(x))
        torch.testing.assert_close(gradient(loss.sum(), model), gradient(loss_of(x).sum(), model))


def test_bad_models_are_refused():
    x = torch.randn(3, 6, dtype=torch.float64)
    for loss_of in (
        approximate_backpropagation_loss,
        lambda model, x: curvature_propagation_loss(model, x, signs(3)),
    ):
        with pytest.raises(NotImplementedError, match="Node has no rule for softmax, which the"):
            loss_of(lambda x: torch.softmax(x, 1).sum(1), x)
        with pytest.raises(ValueError, match=r"log densities \(3,\) are needed"):
            loss_of(lambda x: x.square(), x)
        with pytest.raises(ValueError, match="BatchNorm1d in training mode mixes them"):
            loss_of(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 1)).double(), x)
