"""Directional derivatives of any order, and what is made of them."""

import logging
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kernels.philox import philox_key
from scorekit.derivatives import directional, displacement
from scorekit.derivatives.directional import (
    directional_derivative,
    directional_derivative_autograd,
    weights,
)
from scorekit.derivatives.displacement import default_epsilon
from scorekit.objectives.directions import projections

torch.manual_seed(0)
MATRIX = torch.randn(4, 4, dtype=torch.float64)
X, V, W = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))


def smooth(x):
    return torch.sin(x @ MATRIX).sum(1) + 0.1 * x.pow(4).sum(1)


def field(x):
    return torch.sin(x @ MATRIX)


def jacobian(f, x):
    return torch.func.vmap(torch.func.jacrev(lambda y: f(y[None])[0]))(x)


def hessian(x):
    return jacobian(lambda y: torch.func.vmap(torch.func.grad(lambda z: smooth(z[None])[0]))(y), x)


@pytest.mark.parametrize("order", range(1, 7))
def test_the_error_is_of_second_order_in_epsilon_for_every_derivative(order):
    exact = directional_derivative_autograd(smooth, X, V, order)
    errors = [
        (directional_derivative(smooth, X, V, order, epsilon=epsilon) - exact).norm()
        for epsilon in (0.2, 0.1, 0.05)
    ]
    for coarse, fine in pairwise(errors):
        assert 1.95 < math.log2(coarse / fine) < 2.05


@given(
    alphas=st.lists(st.floats(0.3, 3), min_size=1, max_size=4).filter(
        lambda a: all(abs(p - q) > 0.1 for p, q in pairwise(sorted(a)))
    )
)
@settings(deadline=None, max_examples=50)
def test_weights_solve_the_vandermonde_system(alphas):
    powers = [[a ** (2 * j) for j in range(len(alphas))] for a in alphas]
    v = torch.tensor(powers, dtype=torch.float64)
    right = torch.zeros(len(alphas), dtype=torch.float64)
    right[-1] = 1
    found = torch.tensor(weights(alphas), dtype=torch.float64)
    scale = float((v.abs().T @ found.abs()).max())
    torch.testing.assert_close(v.T @ found, right, rtol=0, atol=1e-12 * max(scale, 1))


@given(order=st.integers(1, 6), length=st.floats(0.1, 10), data=st.data())
@settings(deadline=None, max_examples=40)
def test_polynomials_up_to_the_next_degree_have_exact_derivatives(order, length, data):
    """Exact for degree T + 1, whatever the alphas and the direction's length."""
    count = (order + 1) // 2
    steps = data.draw(st.permutations([0.5, 0.8, 1.0, 1.3, 1.7]))[:count]
    v = length * V / V.norm(dim=1, keepdim=True)

    def polynomial(x):
        return x.sum(1).pow(order + 1)

    found = directional_derivative(polynomial, X, v, order, epsilon=1.0, alphas=steps)
    along, at = v.sum(1), X.sum(1)
    exact = math.factorial(order + 1) * along.pow(order) * at
    scale = (at.abs() + along.abs() / length).pow(order + 1) * length**order * 1e5
    assert ((found - exact).abs() <= 1e-12 * scale + 1e-9 * exact.abs()).all()


def test_all_evaluations_are_one_batch_copy_after_copy():
    seen = []

    def f(x):
        seen.append(x)
        return smooth(x)

    for order in range(1, 6):
        directional_derivative(f, X, V, order, epsilon=0.1)
    assert [len(x) // len(X) for x in seen] == [2, 3, 4, 5, 6]  # T + 1, in one call each
    first, last = seen[1][:3], seen[1][-3:]
    torch.testing.assert_close(first, X + 0.1 * V / V.norm(dim=1, keepdim=True))
    assert torch.equal(last, X)


def test_functions_with_values_of_any_shape_and_an_epsilon_for_each_sample():
    exact = torch.einsum("bij,bj->bi", jacobian(field, X), V)
    epsilon = torch.tensor([1e-4, 2e-4, 3e-4], dtype=torch.float64)
    found = directional_derivative(field, X, V, 1, epsilon=epsilon)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)
    one = directional_derivative(field, X, V, 1, epsilon=2e-4)
    torch.testing.assert_close(one[1], found[1])


def test_a_derivative_along_nothing_is_zero():
    for order in (1, 2, 3):
        found = directional_derivative(smooth, X, 0 * V, order)
        assert torch.equal(found, torch.zeros(3, dtype=torch.float64))


NAMES = [
    "gradient_projection",
    "gradient_norm_squared",
    "hessian_trace",
    "hessian_frobenius_norm_squared",
]


@pytest.mark.parametrize("name", NAMES)
def test_applications_agree_with_automatic_differentiation_along_the_same_v(name):
    along = (V, W) if name == "hessian_frobenius_norm_squared" else (V,)
    exact = getattr(directional, f"{name}_autograd")(smooth, X, *along)
    errors = [
        (getattr(directional, name)(smooth, X, *along, epsilon=epsilon) - exact).norm()
        for epsilon in (0.1, 0.05)
    ]
    assert 1.9 < math.log2(errors[0] / errors[1]) < 2.1
    each = torch.full((3,), 0.05, dtype=torch.float64)
    same = getattr(directional, name)(smooth, X, *along, epsilon=each)
    torch.testing.assert_close(same, exact, rtol=0.1, atol=0.1)


def test_without_directions_automatic_differentiation_gives_the_quantity_itself():
    h = hessian(X)
    gradient = jacobian(lambda x: smooth(x)[:, None], X)[:, 0]
    for name, exact in (
        ("gradient_norm_squared", gradient.square().sum(1)),
        ("hessian_trace", torch.einsum("bii->b", h)),
        ("hessian_frobenius_norm_squared", h.square().sum((1, 2))),
    ):
        found = getattr(directional, f"{name}_autograd")(smooth, X)
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES[1:])
def test_means_over_projections_are_the_quantity_itself(name):
    n = 20_000
    x = X[:1].repeat(n, 1)
    key, step = philox_key(0), torch.tensor(0)
    count = 2 if "frobenius" in name else 1
    drawn = [
        projections("gaussian", key, torch.arange(i * n, (i + 1) * n), step, (4,)).double()
        for i in range(count)
    ]
    found = getattr(directional, name)(smooth, x, *drawn, epsilon=1e-2)
    exact = getattr(directional, f"{name}_autograd")(smooth, X[:1])
    assert abs(found.mean() - exact) < 5 * found.std() / math.sqrt(n) + 1e-3 * abs(exact)


def test_the_default_epsilon_is_two_percent_of_root_d_and_at_most_a_fifth_of_the_noise():
    assert default_epsilon(100) == pytest.approx(0.2)
    assert default_epsilon(100, 5.0) == pytest.approx(0.2)
    assert default_epsilon(100, 0.01) == pytest.approx(0.02)
    sigma = torch.tensor([5.0, 0.01])
    torch.testing.assert_close(default_epsilon(100, sigma), torch.tensor([0.2, 0.02]))
    found = directional_derivative(smooth, X, V, 2)
    assert torch.equal(found, directional_derivative(smooth, X, V, 2, epsilon=0.04))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: directional_derivative(smooth, X, V, 0), "order = 0 must be at least 1"),
        (lambda: directional_derivative_autograd(smooth, X, V, 0), "order = 0 must be at least"),
        (lambda: directional_derivative(smooth, X, V[0], 1), r"v has shape \(4,\); \(3, 4\) is"),
        (lambda: directional_derivative(smooth, X, V, 3, alphas=[1]), "takes 2 alphas, not 1"),
        (lambda: weights([1.0, 1.0]), r"alphas = \[1.0, 1.0\] must be distinct positive"),
        (lambda: weights([-1.0]), "must be distinct positive numbers"),
        (lambda: default_epsilon(0), "dim = 0 must be at least 1"),
        (lambda: default_epsilon(2, 0.0), "sigma = 0.0 must be positive"),
        (lambda: directional_derivative(smooth, X.bfloat16(), V.bfloat16(), 1), "bfloat16: run"),
        (
            lambda: directional.hessian_frobenius_norm_squared_autograd(smooth, X, V),
            "v and w come together",
        ),
    ],
)
def test_bad_arguments_are_refused_with_what_would_be_right(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_too_small_epsilon_is_warned_of_once_and_one_that_moves_nothing_is_refused(caplog):
    x, v = X.float(), V.float()

    def f(x):
        return x.sin().sum(1)

    displacement._warn_of_rounding.cache_clear()
    with caplog.at_level(logging.WARNING, "scorekit"):
        for epsilon in (0.04, 0.003):
            directional_derivative(f, x, v, 2, epsilon=epsilon)
        assert caplog.text == ""
        for _ in range(2):
            directional_derivative(f, x, v, 2, epsilon=1e-3)
        assert len(caplog.records) == 1
        assert "epsilon = 0.001 in 4 dimensions is small for a difference of order 2" in caplog.text
        directional_derivative(f, x, v, 1, epsilon=1e-3)
        directional_derivative(smooth, X, V, 2, epsilon=1e-3)  # float64
    assert len(caplog.records) == 1
    for epsilon in (1e-8, 0.0, float("nan")):
        with pytest.raises(ValueError, match=r"rounds away: about 0.04 is right for data of unit"):
            directional_derivative(f, x, v, 2, epsilon=epsilon)


def test_models_whose_copies_would_differ_are_refused():
    for layer, message in ((nn.BatchNorm1d(4), "mixes them"), (nn.Dropout(0.5), "another mask")):
        model = nn.Sequential(layer, nn.Linear(4, 1), nn.Flatten(0)).double()
        with pytest.raises(ValueError, match=message):
            directional_derivative(model, X, V, 1)
        directional_derivative(model.eval(), X, V, 1)
