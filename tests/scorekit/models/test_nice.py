"""NICE: an exact inverse, a determinant that is the Jacobian's, a density that integrates to 1."""

import math

import pytest
import torch
from scipy import stats

from kernels.philox import Stream, philox_key, philox_uniform
from scorekit.data.embedded import digits_split
from scorekit.models.nice import NICE, from_logit, to_logit
from scorekit.training.batches import augment


def flow(dim, scale=0.4, **options):
    """A small flow in float64 with every parameter away from its first value."""
    torch.manual_seed(0)
    model = NICE(dim, **{"width": 8, "n_hidden": 2, **options}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn_like(parameter)
    return model


def uniform(n, dim):
    index, step = torch.arange(n), torch.tensor(0)
    return philox_uniform(philox_key(0), index, step, (dim,), Stream.INITIAL)


@pytest.mark.parametrize("dim", [2, 3, 8, 65])
@pytest.mark.parametrize("n_couplings", [1, 4])
def test_decoding_inverts_encoding(dim, n_couplings):
    model = flow(dim, n_couplings=n_couplings)
    x = 3 * torch.randn(20, dim, dtype=torch.float64)
    assert float((model.encode(x) - x).detach().abs().max()) > 0.1
    torch.testing.assert_close(model.decode(model.encode(x)), x, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.encode(model.decode(x)), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prior", ["logistic", "gaussian"])
@pytest.mark.parametrize("dim", [2, 5])
def test_the_density_is_the_prior_times_the_jacobian(dim, prior):
    model = flow(dim, prior=prior)
    for x in torch.randn(4, dim, dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(lambda x: model.encode(x[None])[0], x)
        log_det = torch.linalg.slogdet(jacobian).logabsdet
        z = model.encode(x[None])[0].detach().numpy()
        distribution = stats.logistic if prior == "logistic" else stats.norm
        expected = distribution.logpdf(z).sum() + float(log_det)
        assert model.log_prob(x[None]).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("prior", ["logistic", "gaussian"])
@pytest.mark.parametrize(("dim", "n", "n_couplings"), [(1, 20_001, 0), (2, 401, 4)])
def test_the_density_integrates_to_one(dim, n, n_couplings, prior):
    model = flow(dim, n_couplings=n_couplings, prior=prior, scale=0.2)
    axis = torch.linspace(-40, 40, n, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    with torch.no_grad():
        mass = float(model.log_prob(points).exp().sum() * (80 / (n - 1)) ** dim)
    assert mass == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("prior", ["logistic", "gaussian"])
def test_samples_follow_the_density(prior):
    model = flow(2, prior=prior)
    x = model.sample(uniform(4000, 2).double())
    assert x.isfinite().all()
    z = model.encode(x).detach().numpy()
    distribution = stats.logistic if prior == "logistic" else stats.norm
    for axis in range(2):
        assert stats.kstest(z[:, axis], distribution.cdf).pvalue > 1e-3


@pytest.mark.parametrize("prior", ["logistic", "gaussian"])
def test_the_largest_uniform_value_gives_a_finite_sample(prior):
    assert NICE(2, width=4, prior=prior).sample(torch.ones(1, 2)).isfinite().all()


def test_it_starts_as_the_prior():
    model, x = NICE(6, width=8).double(), torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(model.encode(x), x)


def test_the_score_reaches_every_parameter_by_a_second_derivative():
    model, x = flow(5), torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    v = torch.randn_like(x)
    score = model.score(x, create_graph=True)
    (hv,) = torch.autograd.grad((score * v).sum(), x, create_graph=True)
    (hv * v).sum().backward()
    for name, parameter in model.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, name


def test_maximum_likelihood_on_digits_beats_independent_pixels():
    images = torch.from_numpy(digits_split("train")[0])
    noise = philox_uniform(
        *(philox_key(0), torch.arange(len(images)), torch.tensor(0), (1, 8, 8)),
        Stream.DEQUANTISATION,
    )
    y, _ = to_logit(augment(images, dequantisation=noise).flatten(1), margin=0.01)
    train, test = y[:1300], y[1300:]
    mean, std = train.mean(0), train.std(0)
    independent = torch.distributions.Normal(mean, std).log_prob(test).sum(1).mean()
    torch.manual_seed(0)
    model = NICE(64, width=64, n_hidden=2)
    with torch.no_grad():
        model.log_scale.copy_(-(std * math.sqrt(3) / math.pi).log())
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(150):
        batch = train[torch.arange(step * 100, step * 100 + 100) % len(train)] - mean
        optimiser.zero_grad()
        (-model.log_prob(batch).mean()).backward()
        optimiser.step()
    assert model.log_prob(test - mean).mean().item() > float(independent) + 10


def test_the_default_layers_are_the_paper_s_for_mnist():
    with torch.device("meta"):
        model = NICE(784)
    assert len(model.shifts) == 4
    assert [layer.out_features for layer in model.shifts[0].hidden] == [1000] * 5
    assert model.prior == "logistic"


@pytest.mark.parametrize("margin", [1e-6, 0.05])
def test_the_logit_has_its_inverse_and_its_determinant(margin):
    x = torch.rand(7, 3, dtype=torch.float64)
    x[0], x[1] = 0, 1
    y, log_det = to_logit(x, margin)
    assert y.isfinite().all()
    torch.testing.assert_close(from_logit(y, margin), x, rtol=0, atol=1e-12)
    for row, expected in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda r: to_logit(r[None], margin)[0][0], row
        )
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NICE(1), "n_couplings = 4 must be 0 where dim = 1"),
        (lambda: NICE(2, width=0), "width = 0 must be at least 1"),
        (lambda: NICE(2, activation="relu"), "activation = 'relu' must be smooth"),
        (lambda: NICE(2, prior="uniform"), "prior = 'uniform' must be one of logistic, gaussian"),
        (lambda: NICE(2).log_prob(torch.zeros(3)), r"x has shape \(3,\); \(B, 2\) is needed"),
        (lambda: NICE(2).sample(torch.ones(1, 3)), r"z has shape \(1, 3\)"),
        (lambda: to_logit(torch.tensor([[1.5]])), r"x lies in \[1.5, 1.5\]; \[0, 1\] is needed"),
        (lambda: to_logit(torch.tensor([[math.nan]])), "x lies in"),
        (lambda: to_logit(torch.zeros(1, 1), 0.5), "margin = 0.5"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
