"""Deep kernel exponential families: the closed form against automatic differentiation."""

import math

import pytest
import torch

from scorekit.models.dkef import DKEF
from scorekit.models.normaliser import log_normaliser


def exact_score_matching(log_density, x):
    x = x.detach().requires_grad_()
    (score,) = torch.autograd.grad(log_density(x).sum(), x, create_graph=True)
    loss = 0.5 * score.square().sum(1)
    for d in range(x.shape[1]):
        (row,) = torch.autograd.grad(score[:, d].sum(), x, create_graph=True)
        loss = loss + row[:, d]
    return loss


def model_and_rows(dim=3, m=12, dtype=torch.float64, **options):
    """A model whose every parameter is away from its first value, and rows to judge it on."""
    torch.manual_seed(0)
    rows = torch.randn(40, dim, dtype=dtype)
    model = DKEF(rows[:m], hidden=6, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        model.alpha.copy_(torch.randn(m))
    return model, rows


@pytest.mark.parametrize("n_kernels", [1, 3])
@pytest.mark.parametrize("dim", [1, 4])
def test_the_quadratic_is_exact_score_matching(dim, n_kernels):
    model, rows = model_and_rows(dim, n_kernels=n_kernels)
    quadratic = model.quadratic(rows)
    for alpha in (torch.zeros(12).double(), model.alpha, 3 * model.alpha):
        expected = exact_score_matching(lambda x, a=alpha: model(x, a), rows).mean()
        torch.testing.assert_close(quadratic.value(alpha), expected)


def test_alpha_minimises_the_objective_and_the_ridge():
    model, rows = model_and_rows()
    quadratic, ridge = model.quadratic_over(rows), torch.tensor(0.05)
    best = quadratic.minimiser(ridge).requires_grad_()
    penalised = quadratic.value(best) + 0.5 * ridge * best.square().sum()
    (gradient,) = torch.autograd.grad(penalised, best)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    for _ in range(5):
        other = best.detach() + 0.1 * torch.randn_like(best)
        assert float(quadratic.value(other) + 0.5 * ridge * other.square().sum()) > penalised.item()


def test_more_ridge_gives_smaller_coefficients():
    model, rows = model_and_rows()
    quadratic = model.quadratic(rows)
    norms = [float(quadratic.minimiser(torch.tensor(r)).detach().norm()) for r in (1e-6, 1e-2, 10)]
    assert norms[0] > norms[1] > norms[2]


def test_the_loss_through_the_solution_has_the_gradient_of_differences():
    model, rows = model_and_rows(dim=2)

    def loss():
        with torch.enable_grad():
            alpha = model.quadratic(rows[:20]).minimiser(model.ridge)
            return exact_score_matching(lambda x: model(x, alpha), rows[20:]).mean()

    loss().backward()
    h = 1e-6
    for name, parameter in model.named_parameters():
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += h * direction
            above = loss().item()
            parameter -= 2 * h * direction
            below = loss().item()
            parameter += h * direction
        difference = (above - below) / (2 * h)
        expected = float((parameter.grad * direction).sum())
        assert abs(expected) > 1e-8, name
        assert expected == pytest.approx(difference, rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunks_of_rows_do_not_change_the_quadratic(chunk):
    model, rows = model_and_rows()
    whole, parts = model.quadratic(rows), model.quadratic_over(rows, chunk)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)
        assert not b.requires_grad
    model.fit_coefficients(rows, chunk)
    torch.testing.assert_close(model.alpha, whole.minimiser(model.ridge))


def test_without_coefficients_it_is_a_normalised_gaussian():
    model, rows = model_and_rows(dim=2)
    model.alpha.zero_()
    normal = torch.distributions.Normal(model.mean, model.log_std.exp())
    torch.testing.assert_close(model(rows), normal.log_prob(rows).sum(1))
    result = log_normaliser(model, 2, n=20_000, dtype=torch.float64)
    assert abs(result.value) < 4 * result.standard_error


def test_float32_solves_what_float64_solves():
    model, rows = model_and_rows()
    single = DKEF(rows[:12].float(), hidden=6)
    single.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    alpha = single.quadratic(rows.float()).minimiser(torch.tensor(1e-2))
    expected = model.quadratic(rows).minimiser(torch.tensor(1e-2))
    torch.testing.assert_close(alpha, expected, rtol=1e-3, atol=1e-3)


def test_the_score_at_an_inducing_point_is_that_of_its_neighbourhood():
    model, _ = model_and_rows()
    at = model.inducing.detach()[:3]
    h = 1e-5 * torch.ones_like(at)
    difference = model.score(at + h) - model.score(at - h)
    x = at.clone().requires_grad_()
    (hv,) = torch.autograd.grad((model.score(x, create_graph=True) * h).sum(), x)
    torch.testing.assert_close(2 * hv, difference, rtol=1e-5, atol=1e-10)


def test_the_defaults_are_the_authors():
    model = DKEF(torch.randn(200, 15))
    assert model.alpha.shape == (200,)
    assert model.features(torch.zeros(5, 15)).shape == (3, 5, 30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inducing": torch.zeros(5)}, r"inducing has shape \(5,\)"),
        ({"inducing": torch.zeros(1, 2)}, r"inducing has shape \(1, 2\); \(M >= 2, D\)"),
        ({"inducing": torch.randn(5, 2), "hidden": 0}, "hidden = 0"),
        ({"inducing": torch.randn(5, 2), "ridge": 0.0}, "ridge = 0.0 must be positive"),
        ({"inducing": torch.randn(5, 2), "ridge": math.nan}, "ridge = nan"),
        ({"inducing": torch.ones(5, 2)}, "half of the inducing points or more are the same"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DKEF(**arguments)


def test_rows_of_another_width_are_refused():
    model, rows = model_and_rows()
    with pytest.raises(ValueError, match=r"x has shape \(40, 2\); \(B, 3\) is needed"):
        model(rows[:, :2])
    with pytest.raises(ValueError, match="at least 1 of each"):
        model.quadratic_over(rows[:0])
