"""The importance-sampled normaliser against integrals that are known."""

import math

import pytest
import torch

from scorekit.models.normaliser import log_normaliser


def gaussian(std, shift=0.0):
    """An unnormalised N(shift, std^2 I) with log Z = D log(std sqrt(2 pi))."""
    return lambda x: -0.5 * ((x - shift) / std).square().sum(1)


@pytest.mark.parametrize(("dim", "std"), [(1, 1.0), (2, 1.5), (6, 1.0)])
def test_a_gaussian_has_its_closed_form(dim, std):
    result = log_normaliser(gaussian(std, 0.3), dim, n=40_000)
    exact = dim * math.log(std * math.sqrt(2 * math.pi))
    assert abs(result.value - exact) < 4 * result.standard_error
    assert 0 < result.standard_error < 0.1
    assert 1 < result.effective_sample_size < result.n


def test_the_effective_sample_size_is_that_of_the_closed_form():
    # w = p / q of N(0, 1) and N(0, 4) per axis: E[w^2] = 4 / sqrt(7).
    result = log_normaliser(gaussian(1.0), 3, n=100_000)
    assert result.effective_sample_size / result.n == pytest.approx(
        (math.sqrt(7) / 4) ** 3, rel=0.03
    )


def test_the_standard_error_is_the_spread_over_seeds():
    results = [log_normaliser(gaussian(1.0), 4, n=2_000, seed=seed) for seed in range(60)]
    spread = torch.tensor([result.value for result in results]).std()
    mean = sum(result.standard_error for result in results) / len(results)
    assert float(spread) == pytest.approx(mean, rel=0.3)


def test_the_proposal_itself_has_full_size_and_no_error():
    result = log_normaliser(gaussian(2.0), 5, n=1_000)
    assert result.effective_sample_size == pytest.approx(1_000, rel=1e-4)
    assert result.standard_error < 1e-3
    assert result.value == pytest.approx(5 * math.log(2 * math.sqrt(2 * math.pi)), abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 1000, 5000])
def test_chunks_bound_the_batch_and_do_not_change_the_result(chunk):
    seen = []

    def log_density(x):
        seen.append(len(x))
        return gaussian(1.0)(x)

    result = log_normaliser(log_density, 2, n=1_000, chunk=chunk, dtype=torch.float64)
    whole = log_normaliser(gaussian(1.0), 2, n=1_000, chunk=10_000, dtype=torch.float64)
    assert max(seen) <= chunk and sum(seen) == 1_000
    assert result.value == pytest.approx(whole.value, abs=1e-12)
    assert result.effective_sample_size == pytest.approx(whole.effective_sample_size, rel=1e-12)


def clusters():
    """Rows of three narrow clusters in 6-D, and their density less log Z = 4."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 6, generator=generator)
    rows = centres[torch.randint(3, (500,), generator=generator)]
    rows = rows + 0.3 * torch.randn(500, 6, generator=generator)

    def log_density(x):
        squared = ((x[:, None] - centres) / 0.3).square().sum(2)
        return torch.logsumexp(-0.5 * squared, 1) - math.log(3) - 6 * math.log(0.3) + 4

    return rows, log_density, 4 + 3 * math.log(2 * math.pi)


def test_sampling_around_rows_is_right_and_wastes_less():
    rows, log_density, exact = clusters()
    near = log_normaliser(log_density, 6, n=5_000, around=rows)
    broad = log_normaliser(log_density, 6, n=5_000)
    assert abs(near.value - exact) < 4 * near.standard_error < 0.2
    assert near.effective_sample_size > 20 * broad.effective_sample_size


def test_rows_in_the_wrong_place_do_no_more_harm_than_their_share():
    rows, _, _ = clusters()
    result = log_normaliser(gaussian(1.0), 2, n=40_000, around=rows[:, :2] * 0 + 50)
    assert abs(result.value - math.log(2 * math.pi)) < 4 * result.standard_error
    assert result.standard_error < 0.05


def test_chunks_do_not_change_the_samples_around_rows():
    rows, log_density, _ = clusters()
    first, second = (
        log_normaliser(log_density, 6, n=1_000, around=rows.repeat(3, 1), chunk=chunk)
        for chunk in (7, 1_000)
    )
    assert first.value == pytest.approx(second.value, abs=1e-5)


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"around has shape \(4, 3\); \(N, 2\) is needed"):
        log_normaliser(gaussian(1.0), 2, around=torch.zeros(4, 3))


@pytest.mark.parametrize("offset", [-2000.0, 2000.0])
def test_large_log_densities_neither_overflow_nor_vanish(offset):
    result = log_normaliser(lambda x: gaussian(1.0)(x) + offset, 2, n=1_000, dtype=torch.float64)
    plain = log_normaliser(gaussian(1.0), 2, n=1_000, dtype=torch.float64)
    assert result.value - offset == pytest.approx(plain.value, abs=1e-9)


def test_a_density_with_holes_is_integrated_over_the_rest():
    def half(x):
        return torch.where(x[:, 0] > 0, gaussian(1.0)(x), -math.inf)

    result = log_normaliser(half, 1, n=20_000, chunk=50)
    exact = math.log(math.sqrt(2 * math.pi) / 2)
    assert abs(result.value - exact) < 4 * result.standard_error


@pytest.mark.parametrize(
    ("log_density", "message"),
    [
        (lambda x: x[:, 0] * math.nan, "NaN or [+]inf at a sample in"),
        (lambda x: x[:, 0] * 0 + math.inf, "NaN or [+]inf"),
        (lambda x: x[:, 0] * 0 - math.inf, "the density is 0 at all 100 samples"),
    ],
)
def test_what_has_no_integral_is_refused(log_density, message):
    with pytest.raises(ValueError, match=message):
        log_normaliser(log_density, 2, n=100)


@pytest.mark.parametrize(
    "setting", [{"n": 0}, {"chunk": 0}, {"dim": 0}, {"std": 0.0}, {"bandwidth": 0.0}]
)
def test_settings_out_of_range_are_refused(setting):
    options = {"dim": 2, **setting}
    with pytest.raises(ValueError, match=f"{next(iter(setting))} = 0"):
        log_normaliser(gaussian(1.0), options.pop("dim"), **options)
