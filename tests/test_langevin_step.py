"""One Langevin step against Eq. (1)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.langevin_step import langevin_step
from kernels.philox import Stream, philox_key, philox_normal


def step(x, score, alpha, *, seed=0, first=0, t=5):
    index = torch.arange(first, first + len(x))
    alpha = torch.tensor(alpha, dtype=torch.float32)
    return langevin_step(x, score, alpha, philox_key(seed), index, torch.tensor(t))


def by_the_book(x, score, alpha, *, seed=0, first=0, t=5):
    index = torch.arange(first, first + len(x))
    z = philox_normal(philox_key(seed), index, torch.tensor(t), tuple(x.shape[1:]), Stream.LANGEVIN)
    alpha = float(torch.tensor(alpha, dtype=torch.float32))
    return x.double() + alpha * score.double() + (2 * alpha) ** 0.5 * z.double()


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.floats(1e-9, 1e3),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, deadline=None)
def test_float64_steps_equal_equation_1(shape, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    score = torch.randn(shape, dtype=torch.float64, generator=generator)
    result = step(x, score, alpha, seed=seed)
    assert result.dtype == torch.float64
    torch.testing.assert_close(
        result, by_the_book(x, score, alpha, seed=seed), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("alpha", [6.2e-6, 0.01, 155.0])
def test_float32_steps_are_as_precise_as_float32_allows(alpha):
    x = torch.rand(3, 3, 8, 8)
    score = torch.randn(3, 3, 8, 8) / alpha**0.5
    result = step(x, score, alpha)
    assert result.dtype == torch.float32
    exact = by_the_book(x, score, alpha)
    scale = exact.abs().max()
    assert (result - exact).abs().max() < 4 * torch.finfo(torch.float32).eps * scale


@pytest.mark.parametrize("score_dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_score_of_any_precision_is_added_without_rounding_the_images(dtype, score_dtype):
    x = torch.randn(2, 3, 4, 4, dtype=dtype)
    score = torch.randn(2, 3, 4, 4).to(score_dtype)
    result = step(x, score, 0.01)
    assert result.dtype == dtype
    torch.testing.assert_close(result, by_the_book(x, score, 0.01).to(dtype), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha", [1e-4, 0.3])
def test_mean_and_variance_of_a_step(alpha):
    x = torch.full((64, 4096), 0.25, dtype=torch.float64)
    score = torch.full((64, 4096), -2.0)
    moved = (step(x, score, alpha) - x).flatten()
    n = len(moved)
    deviation = (2 * alpha) ** 0.5
    assert abs(float(moved.mean()) + 2 * alpha) < 4 * deviation / n**0.5
    assert float(moved.var()) == pytest.approx(2 * alpha, rel=4 * (2 / n) ** 0.5)


def test_noise_differs_by_step_and_sample_and_inputs_stay_untouched():
    x = torch.zeros(2, 100)
    score = torch.zeros(2, 100)
    first, second = step(x, score, 0.5, t=0), step(x, score, 0.5, t=1)
    assert (first != second).float().mean() > 0.99
    assert (first[0] != first[1]).float().mean() > 0.99
    assert torch.equal(step(x, score, 0.5, t=0, first=1)[0], first[1])
    assert not x.any()
    assert not score.any()
