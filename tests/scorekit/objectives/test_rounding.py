"""Which epsilon: measured truncation and rounding of a finite-difference objective."""

import logging
import math

import pytest
import torch
from torch import nn

from scorekit.objectives import rounding
from scorekit.objectives.rounding import finite_difference_error
from scorekit.objectives.score_matching import Conditioned, score_matching_loss

torch.manual_seed(0)
X, V = torch.randn(16, 3), torch.randn(16, 3).sign()


def energy(seed=0):
    torch.manual_seed(seed)
    hidden = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
    return nn.Sequential(*hidden, nn.Linear(16, 1), nn.Flatten(0))


def gradient(model, **settings):
    x, v = X.double(), V.double()
    loss = score_matching_loss(model, x, energy=True, projection=v, **settings).mean()
    found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("epsilon", [0.05, 0.2])
def test_truncation_is_the_error_against_the_exact_gradient(epsilon):
    error = finite_difference_error(energy(), X, V, epsilon, energy=True)
    model = energy().double()
    exact = gradient(model, objective="ssm")
    true = (gradient(model, objective="fd_ssm", epsilon=epsilon) - exact).norm() / exact.norm()
    assert error.truncation == pytest.approx(float(true), rel=0.05)


def test_rounding_falls_and_truncation_grows_as_epsilon_squared():
    small, large = (finite_difference_error(energy(), X, V, e, energy=True) for e in (0.01, 0.1))
    assert 1.9 < math.log10(large.truncation / small.truncation) < 2.1
    assert small.rounding > 20 * large.rounding  # a hundredfold, on one batch


def test_a_better_dtype_rounds_less():
    half, single, double = (
        finite_difference_error(energy(), X, V, 0.1, energy=True, dtype=dtype).rounding
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
    )
    assert half > 100 * single > 0 and double == 0


def test_it_warns_once_where_rounding_dominates_and_not_elsewhere(caplog, monkeypatch):
    monkeypatch.setattr(rounding, "_warned", set())
    with caplog.at_level(logging.WARNING, "scorekit"):
        assert not finite_difference_error(energy(), X, V, 0.5, energy=True).rounding_dominates
        assert caplog.text == ""
        for _ in range(2):
            error = finite_difference_error(energy(), X, V, 1e-3, energy=True)
    assert error.rounding_dominates and error.rounding > 0.05
    assert len(caplog.records) == 1
    assert "at epsilon = 0.001 in torch.float32 rounding errors dominate" in caplog.text


def test_score_networks_and_noise_indices():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.levels = nn.Embedding(2, 3)
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Softplus(), nn.Linear(8, 3))

        def forward(self, x, level):
            return self.net(x) * self.levels(level)

    torch.manual_seed(0)
    model = Network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    level = torch.arange(16) % 2
    noise = {"noise": torch.randn(16, 3), "sigma": torch.full((16,), 0.5)}
    error = finite_difference_error(Conditioned(model, level), X, V, 0.1, energy=False, **noise)
    assert 0 < error.rounding < error.truncation < 0.1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(model.parameters()).grad is None


def test_random_and_fixed_models_are_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x):
            return (nn.functional.dropout(self.linear(x), 0.5)).tanh().squeeze(1)

    with pytest.raises(ValueError, match="the model is random: two evaluations"):
        finite_difference_error(Noisy(), X, V, 0.1, energy=True)
    with pytest.raises(ValueError, match="no parameters that require gradients"):
        finite_difference_error(energy().requires_grad_(False), X, V, 0.1, energy=True)
