"""Distributions of noise scales in training: their quantiles, their weights, their registry."""

import math

import pytest
import torch
from scipy import stats

from kernels.philox import philox_key
from scorekit.techniques.noise_levels import (
    NOISE_LEVELS,
    NoiseLevels,
    check_noise_levels,
    denoising_weight,
    log_normal_sigmas,
    log_uniform_sigmas,
    register_noise_levels,
)


def drawn(function, n=4000, seed=0, step=3):
    return function(philox_key(seed), torch.arange(n), torch.tensor(step), 5.0, 0.05)


def test_log_uniform_scales_lie_between_the_ladders_ends():
    sigma = drawn(log_uniform_sigmas)
    assert sigma.shape == (4000,) and sigma.dtype == torch.float32
    fraction = (sigma.double().log() - math.log(0.05)) / math.log(100)
    assert stats.kstest(fraction.numpy(), "uniform").pvalue > 1e-3


def test_log_normal_scales_are_those_of_images_twice_as_bright():
    z = ((2 * drawn(log_normal_sigmas, seed=1).double()).log() + 1.2) / 1.2
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("function", [log_uniform_sigmas, log_normal_sigmas])
def test_scales_are_functions_of_seed_step_and_place(function):
    whole = drawn(function)
    part = function(philox_key(0), torch.tensor([7, 3]), torch.tensor(3), 5.0, 0.05)
    assert torch.equal(part, whole[[7, 3]])
    assert not torch.equal(drawn(function, seed=1), whole)
    assert not torch.equal(drawn(function, step=4), whole)


def test_weights_are_the_sources_of_the_denoisers_error():
    sigma = torch.tensor([0.01, 0.25, 4.0], dtype=torch.float64)
    theirs = ((2 * sigma) ** 2 + 0.5**2) / (2 * sigma * 0.5) ** 2  # of ||D - y||^2, y in [-1, 1]
    # ||D - y||^2 = (2 sigma)^2 ||sigma s + z||^2.
    torch.testing.assert_close(denoising_weight(sigma), theirs * (2 * sigma) ** 2)


def test_a_distribution_of_ones_own_is_taken_by_its_name():
    own = NoiseLevels(draw=lambda key, index, step, begin, end: torch.full(index.shape, end))
    register_noise_levels("smallest", own)
    try:
        check_noise_levels("smallest")
        with pytest.raises(ValueError, match="noise_levels = 'smallest' is registered already"):
            register_noise_levels("smallest", own)
    finally:
        del NOISE_LEVELS["smallest"]
    with pytest.raises(ValueError, match="noise_levels = 'ladder' is registered already"):
        register_noise_levels("ladder", own)
    with pytest.raises(ValueError, match=r"'smallest': one of ladder, log_uniform, log_normal"):
        check_noise_levels("smallest")
