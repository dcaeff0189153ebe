"""Energy models: shapes, smoothness to third order, and depth without explosion."""

import pytest
import torch

from scorekit.models.dkef import DKEF
from scorekit.models.energy import ConvEnergy, MLPEnergy
from scorekit.models.nice import NICE


def mlp(activation="softplus"):
    torch.manual_seed(0)
    return MLPEnergy(3, width=8, activation=activation).double()


def conv(**options):
    torch.manual_seed(0)
    model = ConvEnergy(1, 8, width=4, n_blocks=2, **options).double()
    for block in model.blocks:  # as after training: no branch is zero
        torch.nn.init.kaiming_normal_(block.conv2.weight)
    return model


def dkef():
    torch.manual_seed(0)
    model = DKEF(torch.randn(9, 3, dtype=torch.float64), hidden=6)
    model.alpha.copy_(torch.randn(9))
    return model


def nice():
    torch.manual_seed(0)
    model = NICE(3, width=6, n_hidden=2).double()
    for shift in model.shifts:  # as after training: no shift is zero
        torch.nn.init.normal_(shift.last.weight)
    return model


MODELS = {
    "mlp": (mlp, (3,)),
    "mlp silu": (lambda: mlp("silu"), (3,)),
    "mlp tanh": (lambda: mlp("tanh"), (3,)),
    "conv": (conv, (1, 8, 8)),
    "conv softplus": (lambda: conv(activation="softplus"), (1, 8, 8)),
    "dkef": (dkef, (3,)),
    "nice": (nice, (3,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_value_per_sample_and_a_score_of_its_shape(name):
    build, shape = MODELS[name]
    model, x = build(), torch.randn(5, *shape, dtype=torch.float64)
    assert model(x).shape == (5,)
    assert model.score(x).shape == x.shape
    # Samples do not see one another.
    torch.testing.assert_close(model(x)[2:3], model(x[2:3]))
    torch.testing.assert_close(model.score(x)[2:3], model.score(x[2:3]))


@pytest.mark.parametrize("name", MODELS)
def test_the_score_is_the_gradient_of_the_value(name):
    build, shape = MODELS[name]
    model = build()
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    v = torch.randn_like(x)
    h = 1e-5
    difference = (model(x + h * v) - model(x - h * v)) / (2 * h)
    torch.testing.assert_close(
        (model.score(x) * v).flatten(1).sum(1), difference, rtol=1e-7, atol=1e-8
    )


@pytest.mark.parametrize("name", MODELS)
def test_derivatives_up_to_the_third_agree_with_differences_of_one_lower(name):
    build, shape = MODELS[name]
    model = build()
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    v = torch.randn_like(x)

    def derivatives(t):
        t = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        value, results = model(x + t * v).sum(), []
        for _ in range(3):
            (value,) = torch.autograd.grad(value, t, create_graph=True)
            results.append(value.item())
        return results

    h = 1e-4
    at, above, below = derivatives(0.0), derivatives(h), derivatives(-h)
    assert abs(at[1]) > 1e-3 and abs(at[2]) > 1e-4
    for order in (1, 2):
        difference = (above[order - 1] - below[order - 1]) / (2 * h)
        assert at[order] == pytest.approx(difference, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_forward_over_reverse_agrees_with_double_backward(name):
    build, shape = MODELS[name]
    model = build()
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    v = torch.randn_like(x)
    score = model.score(x, create_graph=True)
    (hv,) = torch.autograd.grad((score * v).sum(), x)
    gradient = torch.func.grad(lambda x: model(x).sum())
    forward_score, forward_hv = torch.func.jvp(gradient, (x.detach(),), (v,))
    torch.testing.assert_close(forward_score, score)
    torch.testing.assert_close(forward_hv, hv)


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_model_is_one_graph_with_one_backward(name):
    build, shape = MODELS[name]
    model, x = build(), torch.randn(2, *shape, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for module in (model, compiled):
        model.zero_grad()
        value = module(x)
        value.sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        if module is model:
            expected = [value, *gradients]
    torch.testing.assert_close([value, *gradients], expected)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_gradient_of_a_score_matching_loss_reaches_every_parameter(name):
    build, shape = MODELS[name]
    model, x = build(), torch.randn(4, *shape, dtype=torch.float64)
    x.requires_grad_()
    v = torch.randn_like(x)
    score = model.score(x, create_graph=True)
    (hv,) = torch.autograd.grad((score * v).sum(), x, create_graph=True)
    (hv * v).sum().backward()
    parameters = dict(model.named_parameters())
    last_bias = next(reversed(parameters))  # the constant of the log density
    for parameter_name, parameter in parameters.items():
        if parameter_name == last_bias:
            assert parameter.grad is None or float(parameter.grad.abs().max()) == 0
        else:
            assert float(parameter.grad.abs().max()) > 0, parameter_name


def test_the_score_works_without_gradients_and_leaves_no_graph():
    model, x = MLPEnergy(), torch.randn(4, 2)
    with torch.no_grad():
        score = model.score(x)
    assert not score.requires_grad
    assert not x.requires_grad
    assert model.score(x, create_graph=True).requires_grad


@pytest.mark.parametrize("n_blocks", [2, 16])
def test_depth_changes_neither_the_first_value_nor_how_far_branches_can_take_it(n_blocks):
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    model = ConvEnergy(1, 8, width=16, n_blocks=n_blocks, n_halvings=0)
    torch.manual_seed(0)
    shallow = ConvEnergy(1, 8, width=16, n_blocks=1, n_halvings=0)
    shallow.last.load_state_dict(model.last.state_dict())
    torch.testing.assert_close(model(x), shallow(x))
    before = model.score(x).norm()
    for block in model.blocks:
        torch.nn.init.kaiming_normal_(block.conv2.weight)
    assert 0.5 < float(model.score(x).norm() / before) < 10


@pytest.mark.parametrize(
    ("image_size", "n_halvings", "halved"),
    [(32, 2, {2, 5}), (28, 2, {2, 5}), (8, 2, {4}), (8, 0, set()), (5, 2, set())],
)
def test_resolution_is_halved_while_it_can_be(image_size, n_halvings, halved):
    model = ConvEnergy(3, image_size, width=4, n_halvings=n_halvings)
    assert model.halved_before == halved
    assert model(torch.zeros(2, 3, image_size, image_size)).shape == (2,)


def test_the_default_depth_is_the_authors_eighteen_layers():
    layers = [m for m in ConvEnergy(3, 32).modules() if hasattr(m, "weight")]
    assert len(layers) == 18
    assert len([m for m in MLPEnergy().modules() if hasattr(m, "weight")]) == 3


@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_activations_that_are_not_smooth_are_refused(activation):
    with pytest.raises(ValueError, match=f"activation = '{activation}' must be smooth, one of"):
        MLPEnergy(activation=activation)
    with pytest.raises(ValueError, match="must be smooth"):
        ConvEnergy(1, 8, activation=activation)


def test_wrong_sizes_and_shapes_are_refused():
    with pytest.raises(ValueError, match="depth = 1 must be at least 2"):
        MLPEnergy(depth=1)
    with pytest.raises(ValueError, match="width = 0 must be at least 1"):
        ConvEnergy(1, 8, width=0)
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\); \(B, 2\) is needed"):
        MLPEnergy()(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"\(B, 1, 8, 8\) is needed"):
        ConvEnergy(1, 8)(torch.zeros(4, 3, 8, 8))
