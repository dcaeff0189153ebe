"""The 2-D toy: samples, density and score of one another, and the comparison of fields."""

import math

import pytest
import torch

from kernels.philox import philox_key
from scorekit.data import toy_mixture
from scorekit.models.energy import MLPEnergy

KEY = philox_key(0)


def draw(n, step=0):
    return toy_mixture.sample(KEY, torch.arange(n), torch.tensor(step))


def test_samples_have_the_weights_means_and_covariance_of_the_mixture():
    n = 40_000
    x = draw(n).double()
    upper = x.sum(1) > 0
    assert float(upper.double().mean()) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / n))
    for part, mean in ((x[upper], 5.0), (x[~upper], -5.0)):
        tolerance = 4 / math.sqrt(len(part))
        torch.testing.assert_close(
            part.mean(0), torch.full((2,), mean).double(), rtol=0, atol=tolerance
        )
        torch.testing.assert_close(
            part.T.cov(), torch.eye(2).double(), rtol=0, atol=1.5 * tolerance
        )


def test_a_sample_does_not_depend_on_its_batch():
    torch.testing.assert_close(
        draw(8)[5:6], toy_mixture.sample(KEY, torch.tensor([5]), torch.tensor(0))
    )
    assert not torch.equal(draw(8), draw(8, step=1))


def test_the_density_integrates_to_one_and_has_the_score():
    points = toy_mixture.grid(400, torch.float64) * 1.5
    cell = (1.5 * 16 / 400) ** 2
    assert float(toy_mixture.log_density(points).exp().sum()) * cell == pytest.approx(1, abs=1e-9)
    x = points[::1234].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(toy_mixture.log_density(x).sum(), x)
    torch.testing.assert_close(toy_mixture.score(x.detach()), gradient)


def test_the_grid_holds_the_centres_of_cells():
    points = toy_mixture.grid(2)
    assert points.tolist() == [[-4, -4], [-4, 4], [4, -4], [4, 4]]
    with pytest.raises(ValueError, match="n = 0"):
        toy_mixture.grid(0)


def test_divergence_of_two_gaussians_is_the_closed_form():
    points = toy_mixture.grid(128, torch.float64)
    shift = torch.tensor([0.3, -0.4], dtype=torch.float64)
    weights = (-0.5 * points.square().sum(1)).exp()
    # Scores -x and shift - x: 1/2 ||shift||^2 everywhere.
    assert toy_mixture.fisher_divergence(shift - points, -points, weights) == pytest.approx(0.125)
    assert toy_mixture.fisher_divergence(shift - points, -points) == pytest.approx(0.125)
    # E ||x||^2 = 2 under N(0, I), and 2 * 8^2 / 3 over the square.
    assert toy_mixture.relative_difference(shift - points, -points, weights) == pytest.approx(
        0.5 / math.sqrt(2), rel=1e-6
    )
    assert toy_mixture.relative_difference(1.1 * points, points) == pytest.approx(0.1)


def test_weights_that_cannot_be_a_density_are_refused():
    field = torch.zeros(4, 2)
    for weights in (torch.zeros(4), torch.tensor([1.0, -1, 1, 1]), torch.ones(3)):
        with pytest.raises(ValueError, match=r"weights .* must be \(4,\)"):
            toy_mixture.fisher_divergence(field, field, weights)


def test_an_energy_model_trained_with_sliced_score_matching_finds_the_score():
    torch.manual_seed(0)
    model = MLPEnergy(width=32)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    points = toy_mixture.grid(32)
    weights = toy_mixture.log_density(points).exp()

    def divergence():
        return toy_mixture.fisher_divergence(
            model.score(points), toy_mixture.score(points), weights
        )

    before = divergence()
    for step in range(300):
        x = draw(128, step).requires_grad_()
        v = torch.randint(0, 2, x.shape) * 2.0 - 1
        s = model.score(x, create_graph=True)
        projected = (s * v).sum(1)
        (hv,) = torch.autograd.grad(projected.sum(), x, create_graph=True)
        loss = ((hv * v).sum(1) + 0.5 * projected.square()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert before > 0.7
    assert divergence() < 0.15
