"""Propositions 1 and 2 against sampling, quadrature and automatic differentiation."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from scorekit.techniques.propositions import (
    mixture_responsibilities,
    radius_log_density,
    responsibility_bound,
)


def test_responsibilities_are_posterior_probabilities():
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(6, 3, dtype=torch.float64, generator=generator)
    x = torch.rand(10, 3, dtype=torch.float64, generator=generator)
    densities = torch.tensor(
        [[stats.multivariate_normal.pdf(p, c, 0.3**2) for c in centres.numpy()] for p in x.numpy()]
    )
    expected = densities / densities.sum(1, keepdim=True)
    result = mixture_responsibilities(x, centres, 0.3)
    assert result.shape == (10, 6)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)


def test_responsibilities_stay_finite_where_every_density_underflows():
    x, centres = torch.full((1, 3072), 40.0), torch.rand(5, 3072)
    responsibilities = mixture_responsibilities(x, centres, 0.01)
    assert responsibilities.isfinite().all()
    assert float(responsibilities.sum()) == pytest.approx(1)


@pytest.mark.parametrize("dim", [1, 3, 50])
@pytest.mark.parametrize("sigma", [0.3, 2.0])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("n_others", [0, 3])
def test_the_bound_of_equation_3_holds(dim, sigma, ratio, n_others):
    distance = ratio * sigma
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(2 + n_others, dim, dtype=torch.float64, generator=generator)
    direction = torch.nn.functional.normalize(centres[1] - centres[0], dim=0)
    centres[1] = centres[0] + distance * direction
    n = 20_000
    noise = torch.randn(n, dim, dtype=torch.float64, generator=generator)
    r = mixture_responsibilities(centres[0] + sigma * noise, centres, sigma)[:, 1]
    error = float(r.std()) / n**0.5
    bound = responsibility_bound(distance, sigma)
    assert float(r.mean()) <= bound + 4 * error
    if n_others == 0 and ratio == 0:
        assert float(r.mean()) == pytest.approx(bound)  # equality: both are one half
    if n_others == 0 and 0 < ratio <= 2:
        assert float(r.mean()) > 0.7 * bound  # and the bound says something


def test_bound_by_quadrature_of_two_components():
    for distance in (0.5, 1.0, 3.0):

        def integrand(x, d=distance):
            p, q = stats.norm.pdf(x), stats.norm.pdf(x, d)
            return p * q / (p + q)

        exact = integrate.quad(integrand, -10, 14)[0]
        assert exact < responsibility_bound(distance, 1.0)
    assert responsibility_bound(3.0, 1.0) == pytest.approx(math.exp(-9 / 8) / 2, rel=1e-12)
    assert responsibility_bound(30.0, 10.0) == responsibility_bound(3.0, 1.0)


@pytest.mark.parametrize("dim", [1, 2, 7, 192, 3072])
@pytest.mark.parametrize("sigma", [0.01, 1.0, 50.0])
def test_the_radius_density_integrates_to_one(dim, sigma):
    centre, spread = math.sqrt(dim) * sigma, sigma / math.sqrt(2)
    low, high = max(centre - 12 * spread, 1e-12 * sigma), centre + 12 * spread
    radius = torch.linspace(low, high, 200_001, dtype=torch.float64)
    density = radius_log_density(radius, dim, sigma).exp()
    assert float(torch.trapezoid(density, radius)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("dim", "sigma"), [(2, 1.0), (12, 0.3), (192, 5.0)])
def test_sampled_radii_follow_the_density(dim, sigma):
    rng = np.random.Generator(np.random.Philox(dim))
    radii = np.linalg.norm(rng.normal(0, sigma, (20_000, dim)), axis=1)
    grid = torch.linspace(1e-9, float(radii.max()) * 1.1, 50_001, dtype=torch.float64)
    density = radius_log_density(grid, dim, sigma).exp().numpy()
    cumulative = integrate.cumulative_trapezoid(density, grid.numpy(), initial=0)
    result = stats.kstest(radii, lambda r: np.interp(r, grid.numpy(), cumulative))
    assert result.pvalue > 1e-3


def test_the_radius_tends_to_the_gaussian_of_proposition_2():
    sigma, errors = 0.5, []
    for dim in (12, 192, 3072, 196_608):
        centre, spread = math.sqrt(dim) * sigma, sigma / math.sqrt(2)
        low = max(centre - 4 * spread, 1e-9)
        radius = torch.linspace(low, centre + 4 * spread, 2001, dtype=torch.float64)
        density = radius_log_density(radius, dim, sigma).exp().numpy()
        gaussian = stats.norm.pdf(radius.numpy(), centre, spread)
        errors.append(np.abs(density - gaussian).max() / gaussian.max())
    assert errors == sorted(errors, reverse=True)
    # The limit is reached at a rate of 1 / sqrt(D): 64 times the D, an eighth of the error.
    assert errors[-1] == pytest.approx(errors[-2] / 8, rel=0.05)
    assert errors[-1] < 1e-3
