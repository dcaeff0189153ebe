"""Fully connected networks: shapes, and what is refused."""

import pytest
import torch

from scorekit.models.mlp import MLP, smooth_activation


@pytest.mark.parametrize("n_hidden", [1, 3])
def test_layers_lead_from_inputs_to_outputs(n_hidden):
    network = MLP(3, 2, 5, n_hidden, "silu")
    assert network(torch.zeros(4, 3)).shape == (4, 2)
    sizes = [(m.in_features, m.out_features) for m in network.modules() if hasattr(m, "weight")]
    assert sizes == [(3, 5), *[(5, 5)] * (n_hidden - 1), (5, 2)]


@pytest.mark.parametrize("name", ["softplus", "silu", "tanh"])
def test_second_derivatives_are_continuous_and_not_zero(name):
    activation = smooth_activation(name)
    x = torch.linspace(-3, 3, 601, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(activation(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert float(second.abs().max()) > 0.2
    assert float(second.diff().abs().max()) < 0.03


@pytest.mark.parametrize("name", ["relu", "elu"])
def test_activations_that_are_not_smooth_are_refused(name):
    with pytest.raises(ValueError, match=f"activation = '{name}' must be smooth, one of softplus"):
        MLP(2, 1, 4, 1, name)


@pytest.mark.parametrize("setting", ["inputs", "outputs", "width", "n_hidden"])
def test_sizes_below_one_are_refused(setting):
    sizes = {"inputs": 2, "outputs": 1, "width": 4, "n_hidden": 1, setting: 0}
    with pytest.raises(ValueError, match=f"{setting} = 0 must be at least 1"):
        MLP(**sizes, activation="tanh")


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\); \(B, 2\) is needed"):
        MLP(2, 1, 4, 1, "tanh")(torch.zeros(4, 3))
