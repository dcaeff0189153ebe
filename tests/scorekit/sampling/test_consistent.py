"""Consistent annealed sampling: each step leaves exactly the next scale's noise."""

import math

import pytest
import torch

from kernels.philox import Stream, philox_key, philox_normal
from scorekit.sampling.consistent import (
    check_consistent_step_size,
    consistent_amplitudes,
    refined_sigmas,
)
from scorekit.sampling.langevin import AnnealedLangevin
from scorekit.techniques.noise_scales import geometric_sigmas, ladder_ratio
from scorekit.techniques.table_4 import published

SIGMAS = geometric_sigmas(5, 0.05, 8)
CENTRE = 0.3


def point_score(sigmas):
    """The score of one data point, times sigma."""
    return lambda x, index: (CENTRE - x) / sigmas[index].reshape(-1, 1, 1, 1)


def on_a_point(rate: float, n_steps_each: int, **options) -> AnnealedLangevin:
    """A sampler of one data point; ``rate`` is epsilon / sigma_L^2."""
    return AnnealedLangevin(
        point_score(refined_sigmas(SIGMAS, n_steps_each)),
        SIGMAS,
        step_size=rate * float(SIGMAS[-1]) ** 2,
        n_steps_each=n_steps_each,
        times_sigma=True,
        consistent=True,
        **options,
    )


def noisy_start(index: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    zero = torch.tensor(0)
    z = philox_normal(philox_key(99), index, zero, shape, Stream.LANGEVIN)
    return CENTRE + SIGMAS[0] * z


@pytest.mark.parametrize("n_steps_each", [1, 3])
@pytest.mark.parametrize("rate", ["smallest", 0.5, 1.0, 1.5])
def test_the_noise_after_each_scale_is_that_of_the_next(rate, n_steps_each):
    if rate == "smallest":
        rate = 1 - ladder_ratio(SIGMAS) ** (-1 / n_steps_each)
    index, shape = torch.arange(60), (3, 16, 16)
    drawer = on_a_point(rate, n_steps_each)
    samples = drawer.sample(
        index, shape, initial=noisy_start(index, shape), keep_levels=range(len(SIGMAS))
    )
    five_sigma = 5 * math.sqrt(2 / samples.last.numel())
    for level, sigma in enumerate(SIGMAS[1:]):
        error = (samples.levels[level] - CENTRE).double() / float(sigma)
        assert float(error.square().mean()) == pytest.approx(1, rel=five_sigma)
        assert abs(float(error.mean())) < 5 / error.numel() ** 0.5
    # The last step adds no noise; the whole score at it removes all there is.
    last = (samples.last - CENTRE).double() / float(SIGMAS[-1])
    assert float(last.square().mean()) == pytest.approx((1 - rate) ** 2, rel=five_sigma, abs=1e-9)
    torch.testing.assert_close(
        samples.denoised, torch.full_like(samples.last, CENTRE), rtol=0, atol=1e-6
    )
    assert torch.equal(samples.levels[7], samples.last)


@pytest.mark.parametrize("n_steps_each", [1, 4])
def test_the_trajectory_is_the_recursion(n_steps_each):
    rate = 0.7
    index, key = torch.tensor([3, 17]), philox_key(5)
    shape = (1, 4, 4)
    drawer = on_a_point(rate, n_steps_each, seed=5)
    samples = drawer.sample(index, shape)
    ladder = refined_sigmas(SIGMAS, n_steps_each).double()
    x = drawer.initial(index, shape).double()
    for i, sigma in enumerate(ladder):
        f = (CENTRE - x) / sigma
        denoised = x + sigma * f
        x = x + rate * sigma * f
        if i < len(ladder) - 1:
            gamma = float(ladder[i + 1] / sigma)
            z = philox_normal(key, index, torch.tensor(i), shape, Stream.LANGEVIN).double()
            x = x + ladder[i + 1] * math.sqrt(1 - ((1 - rate) / gamma) ** 2) * z
    torch.testing.assert_close(samples.last.double(), x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(samples.denoised.double(), denoised, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n_levels", "n_steps_each"), [(2, 1), (8, 1), (8, 3), (5, 4)])
def test_score_evaluations_per_sample(n_levels, n_steps_each):
    sigmas, asked = geometric_sigmas(5, 0.05, n_levels), []

    def score(x, noise_index):
        asked.append(noise_index.tolist())
        return torch.zeros_like(x)

    drawer = AnnealedLangevin(
        score,
        sigmas,
        step_size=0.05**2,
        n_steps_each=n_steps_each,
        times_sigma=True,
        consistent=True,
    )
    finished = []
    drawer.sample(torch.arange(2), (1, 4, 4), progress=finished.append)
    assert asked == [[i, i] for i in range((n_levels - 1) * n_steps_each + 1)]
    assert drawer.score_evaluations == len(asked)
    assert finished == list(range(n_levels))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_refined_geometric_ladder_is_the_geometric_one_of_its_length(n):
    sigmas = geometric_sigmas(50, 0.01, 232)
    finer = refined_sigmas(sigmas, n)
    assert finer.dtype == torch.float32
    assert torch.equal(finer[::n], sigmas)
    torch.testing.assert_close(finer, geometric_sigmas(50, 0.01, 231 * n + 1), rtol=1e-6, atol=0)


def test_any_ladder_is_refined_between_its_own_scales():
    finer = refined_sigmas(torch.tensor([4.0, 1.0, 0.5]), 2)
    torch.testing.assert_close(finer, torch.tensor([4.0, 2.0, 1.0, 0.5**0.5, 0.5]))


def test_amplitudes_are_the_papers():
    sigmas, rate = geometric_sigmas(50, 0.01, 232).double(), 0.06
    amplitudes = consistent_amplitudes(rate, sigmas)
    gamma = sigmas[1:] / sigmas[:-1]
    expected = sigmas[1:] * (1 - ((1 - rate) / gamma) ** 2).sqrt()
    torch.testing.assert_close(amplitudes[:-1], expected, rtol=1e-10, atol=0)
    assert float(amplitudes[-1]) == 0


@pytest.mark.parametrize("n_steps_each", [1, 3])
def test_step_sizes_are_taken_within_their_bounds_only(n_steps_each):
    gamma = ladder_ratio(SIGMAS) ** (-1 / n_steps_each)
    variance = float(SIGMAS[-1]) ** 2
    for rate in (1 - gamma, 1.0, (1 + gamma) * 0.999):
        check_consistent_step_size(rate * variance, SIGMAS, n_steps_each)
    text = rf"\[{(1 - gamma) * variance:g}, {(1 + gamma) * variance:g}\)"
    for rate in (0.999 * (1 - gamma), 1.001 * (1 + gamma), 0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=rf"step_size = {rate * variance:g} .*{text}"):
            check_consistent_step_size(rate * variance, SIGMAS, n_steps_each)
        with pytest.raises(ValueError, match=rf"step_size = {rate * variance:g} .*{text}"):
            on_a_point(rate, n_steps_each)


@pytest.mark.parametrize("preset", ["cifar10", "celeba", "church_outdoor", "bedroom", "ffhq"])
def test_the_papers_step_sizes_are_within_bounds(preset):
    ladder = published("NCSNv2", preset).ladder.by_rule("Technique 4")
    check_consistent_step_size(ladder.step_size, ladder.sigmas)
    check_consistent_step_size(ladder.step_size, ladder.sigmas, ladder.n_steps_each)


def test_a_refined_ladder_needs_a_network_of_any_scale():
    with pytest.raises(ValueError, match=r"n_steps_each = 3 .* times_sigma"):
        AnnealedLangevin(
            point_score(SIGMAS), SIGMAS, step_size=0.0025, n_steps_each=3, consistent=True
        )


def test_one_noise_scale_is_refused():
    with pytest.raises(ValueError, match="2 noise scales, got 1"):
        check_consistent_step_size(1e-4, [0.01])
