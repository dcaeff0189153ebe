"""The probability flow by Heun's method: the sources' steps, its order, its variance with churn."""

import math
from itertools import pairwise

import pytest
import torch

from kernels.philox import Stream, philox_key, philox_normal
from scorekit.sampling.consistent import refined_sigmas
from scorekit.sampling.heun import Heun
from scorekit.techniques.noise_scales import geometric_sigmas

MEAN, VARIANCE = 0.3, 0.2**2
SHAPE = (3, 8, 8)
SIGMAS = geometric_sigmas(5, 0.05, 6)


def gaussian_score(x, sigma):
    return (MEAN - x) / (VARIANCE + torch.as_tensor(sigma).reshape(-1, 1, 1, 1) ** 2)


def test_errors_on_a_gaussian_fall_with_the_square_of_the_step():
    index = torch.arange(2)
    errors = []
    for n_steps_each in (2, 4, 8):
        drawer = Heun(
            gaussian_score, SIGMAS, n_steps_each=n_steps_each, takes_sigma=True, start="gaussian"
        )
        first = drawer.initial(index, SHAPE).double()
        last = drawer.sample(index, SHAPE).last.double()
        # The flow keeps (x - mean) / standard deviation.
        shrunk = math.sqrt((VARIANCE + 0.05**2) / (VARIANCE + 5**2))
        exact = MEAN + (first - MEAN) * shrunk
        errors.append(float((last - exact).norm()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("n_steps_each", [1, 2])
@pytest.mark.parametrize("churn", [0.0, 2.0, 100.0])
def test_the_trajectory_is_algorithm_2(n_steps_each, churn):
    index, key, noise = torch.tensor([3, 17]), philox_key(5), 1.01
    drawer = Heun(
        gaussian_score,
        SIGMAS,
        n_steps_each=n_steps_each,
        churn=churn,
        churn_range=(0.1, 3.0),
        churn_noise=noise,
        seed=5,
        takes_sigma=True,
    )
    samples = drawer.sample(index, SHAPE)
    ladder = refined_sigmas(SIGMAS, n_steps_each).double().tolist()
    x, churned = drawer.initial(index, SHAPE).double(), 0

    def denoiser(x, sigma):
        return x + sigma**2 * gaussian_score(x, sigma)

    for i, (t, t_next) in enumerate(pairwise(ladder)):
        gamma = min(churn / len(ladder), math.sqrt(2) - 1) if 0.1 <= t <= 3 else 0.0
        churned += gamma > 0
        t_hat = t + gamma * t
        z = philox_normal(key, index, torch.tensor(2 * i), SHAPE, Stream.LANGEVIN).double()
        x_hat = x + math.sqrt(t_hat**2 - t**2) * noise * z
        d = (x_hat - denoiser(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        d_next = (x - denoiser(x, t_next)) / t_next
        x = x_hat + (t_next - t_hat) * (d / 2 + d_next / 2)
    assert (churned > 0) == (churn > 0) and churned < len(ladder) - 1
    torch.testing.assert_close(samples.last.double(), x, rtol=1e-4, atol=1e-5)
    expected = denoiser(x, ladder[-1])
    torch.testing.assert_close(samples.denoised.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_variance_with_churn_is_that_of_its_recursion():
    drawer = Heun(
        gaussian_score,
        SIGMAS,
        n_steps_each=2,
        churn=3.0,
        takes_sigma=True,
        start="gaussian",
        start_mean=MEAN,
    )
    last = (drawer.sample(torch.arange(400), SHAPE).last - MEAN).double()
    variance = 5.0**2
    ladder = refined_sigmas(SIGMAS, 2).double().tolist()
    for t, t_next in pairwise(ladder):
        t_hat = t * (1 + min(3 / len(ladder), math.sqrt(2) - 1))
        slope, slope_next = (s / (VARIANCE + s**2) for s in (t_hat, t_next))
        h = t_next - t_hat
        factor = 1 + h / 2 * (slope + slope_next * (1 + h * slope))
        variance = factor**2 * (variance + t_hat**2 - t**2)
    five_sigma = 5 * math.sqrt(2 / last.numel())
    assert float(last.square().mean()) == pytest.approx(variance, rel=five_sigma)
    assert variance == pytest.approx(VARIANCE + 0.05**2, rel=0.15)


def test_churn_needs_a_score_of_any_scale():
    with pytest.raises(ValueError, match=r"churn = 3 .*needs times_sigma or takes_sigma"):
        Heun(gaussian_score, SIGMAS, churn=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"churn": -1.0}, "churn = -1.0 must be at least 0"),
        ({"churn": math.nan}, "churn = nan must be at least 0"),
        ({"churn_noise": 0.0}, "churn_noise = 0.0 must be greater than 0"),
        ({"n_steps_each": 0}, "n_steps_each = 0 must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Heun(gaussian_score, SIGMAS, takes_sigma=True, **options)
