"""The score of noisy data is the gradient of its log density, in any blocking and at any sigma."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_device import BOTH, DEVICE, needs_kernel

from kernels.mixture_score import (
    BLOCKS,
    _mixture_score,
    mixture_score,
    mixture_score_reference,
    mixture_score_triton,
)

EPS = 2.0**-24


def draw(n_queries, n_data, dim, sigma, seed=0, dtype=torch.float32):
    """Data in [0, 1] and queries near some of them, as Langevin dynamics meets them."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.rand(n_data, dim, generator=generator, dtype=dtype)
    start = data[torch.randint(0, n_data, (n_queries,), generator=generator)]
    noise = torch.randn(n_queries, dim, generator=generator, dtype=dtype)
    return (start + sigma * noise).to(DEVICE), data.to(DEVICE)


def check(x, data, sigma, *, impl, **options):
    """Compare with the reference in float64, which float32's own reference bounds."""
    score = mixture_score(x, data, sigma, impl=impl, **options)
    assert score.shape == x.shape and score.dtype == x.dtype
    values = data.to(x.dtype) / 255 if data.dtype == torch.uint8 else data.to(x.dtype)
    wide_sigma = sigma.double() if isinstance(sigma, torch.Tensor) else sigma
    exact = mixture_score_reference(x.double(), values.double(), wide_sigma)
    allowed = (mixture_score_reference(x, values, sigma).double() - exact).abs().max()
    # A rounding of x itself changes the score by this much.
    smallest = wide_sigma.min() if isinstance(sigma, torch.Tensor) else sigma
    resolution = torch.finfo(x.dtype).eps / 2 * float(x.abs().max() + 1) / smallest**2
    assert float((score - exact).abs().max()) <= 2 * float(allowed) + 4 * resolution
    return score


def log_density(x, data, sigma):
    squared = (x[:, None] - data).square().sum(2)
    return torch.logsumexp(-squared / (2 * sigma**2), dim=1)


@pytest.mark.parametrize("impl", BOTH)
@given(
    n_queries=st.sampled_from([1, 2, 31, 33]),
    n_data=st.sampled_from([1, 2, 31, 32, 63, 65, 100]),
    dim=st.integers(1, 40),
    sigma=st.sampled_from([0.01, 0.1, 1.0, 50.0]),
    data_block=st.sampled_from([1, 7, 32, 1000]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_agrees_with_the_reference(impl, n_queries, n_data, dim, sigma, data_block, seed):
    x, data = draw(n_queries, n_data, dim, sigma, seed)
    check(x, data, sigma, impl=impl, data_block=data_block)


@given(
    n_data=st.integers(1, 20),
    dim=st.integers(1, 12),
    sigma=st.floats(0.05, 50),
    data_block=st.integers(1, 25),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_is_the_gradient_of_the_log_density(n_data, dim, sigma, data_block, seed):
    x, data = draw(4, n_data, dim, sigma, seed, torch.float64)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(log_density(x, data, sigma).sum(), x)
    x = x.detach()
    tolerance = {"rtol": 1e-9, "atol": 1e-11 / sigma**2}
    score = mixture_score(x, data, sigma, data_block=data_block)
    torch.testing.assert_close(score, expected, **tolerance)
    torch.testing.assert_close(mixture_score_reference(x, data, sigma), expected, **tolerance)


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("sigma", [1e-3, 1.0, 100.0])
def test_one_data_point(impl, sigma):
    x, data = draw(5, 1, 7, 1.0)
    expected = (data.double() - x.double()) / sigma**2
    torch.testing.assert_close(
        mixture_score(x, data, sigma, impl=impl), expected.float(), rtol=2e-7, atol=0
    )


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_two_symmetric_points(impl, sigma):
    generator = torch.Generator().manual_seed(1)
    point = torch.randn(1, 6, generator=generator).to(DEVICE)
    x = torch.randn(40, 6, generator=generator).to(DEVICE)
    a, y = point.double(), x.double()
    expected = (a * torch.tanh((y * a).sum(1, keepdim=True) / sigma**2) - y) / sigma**2
    score = mixture_score(x, torch.cat([point, -point]), sigma, impl=impl)
    torch.testing.assert_close(score, expected.float(), rtol=1e-5, atol=5e-6 / sigma**2)


@pytest.mark.parametrize("impl", BOTH)
def test_large_sigma_points_to_the_mean(impl):
    sigma = 1e3
    x, data = draw(3, 70, 9, 2.0)
    mean = data.double().mean(0)
    logits = -torch.cdist(x.double(), data.double()).square() / (2 * sigma**2)
    # Every weight is 1 / N up to a factor of e^R, R the range of the logits.
    spread = math.expm1(float((logits.amax(1) - logits.amin(1)).max()))
    bound = spread * float((data - mean).norm(dim=1).max()) + 40 * EPS
    pull = mixture_score(x, data, sigma, impl=impl).double() * sigma**2
    assert bound < 1e-4
    assert float((pull - (mean - x)).norm(dim=1).max()) <= bound


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_neither_blocks_nor_order_of_the_data_matter(impl, sigma):
    x, data = draw(5, 97, 11, sigma)
    order = torch.randperm(97, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    whole = mixture_score(x, data, sigma, impl="torch", data_block=97)
    tolerance = {"rtol": 1e-5, "atol": 1e-6 / sigma**2}
    for rows in (data, data[order], data.flip(0)):
        for data_block in (1, 10, 96, 98):
            blocked = mixture_score(x, rows, sigma, impl=impl, data_block=data_block)
            torch.testing.assert_close(blocked, whole, **tolerance)


@needs_kernel
@pytest.mark.parametrize("splits", [1, 2, 3, 4, 9])
def test_neither_do_the_kernels_splits(splits):
    sigma = 0.4
    n_data = 3 * BLOCKS["BLOCK_N"] + 1
    x, data = draw(3, n_data, 5, sigma)
    precision = torch.full((3,), sigma**-2, dtype=torch.float64, device=DEVICE)
    score = mixture_score_triton(x, data, precision, splits=splits)
    expected = mixture_score_reference(x.double(), data.double(), sigma)
    torch.testing.assert_close(score, expected.float(), rtol=1e-5, atol=1e-5)


@needs_kernel
def test_a_split_may_reach_beyond_the_data():
    # Seven tiles in three splits of three: the last split has two tiles of padding.
    sigma = 0.4
    x, data = draw(3, 7 * BLOCKS["BLOCK_N"], 2, sigma)
    precision = torch.full((3,), sigma**-2, dtype=torch.float64, device=DEVICE)
    score = mixture_score_triton(x, data, precision, splits=3)
    expected = mixture_score_reference(x.double(), data.double(), sigma)
    torch.testing.assert_close(score, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", BOTH)
def test_points_that_come_late_take_over(impl):
    """A maximum found in a later tile rescales what was summed, whichever query it is for."""
    sigma = 0.1
    x, data = draw(8, 100, 3, sigma)
    order = torch.argsort((data - x[0]).square().sum(1), descending=True)
    check(x, data[order], sigma, impl=impl, data_block=10)


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("offset", [3.0, 1e3])
def test_far_from_the_data_at_small_sigma_nothing_underflows(impl, offset):
    sigma = 0.01
    x, data = draw(4, 50, 13, sigma)
    x = x + offset
    score = mixture_score(x, data, sigma, impl=impl)
    assert score.isfinite().all()
    nearest = data[torch.cdist(x.double(), data.double()).argmin(1)]
    if offset < 10:  # else float32 may not know which point is nearest
        expected = (nearest.double() - x.double()) / sigma**2
        torch.testing.assert_close(score, expected.float(), rtol=1e-6, atol=0)
    # The pull is that of a point within the data's unit cube.
    assert float((score * sigma**2 + x).min()) > -1e-3
    assert float((score * sigma**2 + x).max()) < 1 + 1e-3


def test_weights_survive_logits_float32_could_not_tell_apart():
    # Squared distances of 4096 that differ by 2e-4 = 2 sigma^2 ln 2.7: float32 holds neither.
    sigma, dim = 0.01, 1024
    data = torch.zeros(2, dim)
    data[0], data[1] = 2.0, -2.0
    x = torch.zeros(1, dim)
    x[0, 0] = 1e-5
    weight = torch.sigmoid(torch.tensor(4 * float(x[0, 0]) / sigma**2, dtype=torch.float64))
    expected = (weight * data[0] + (1 - weight) * data[1] - x) / sigma**2
    score = mixture_score(x, data, sigma, impl="torch")
    torch.testing.assert_close(score, expected.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", BOTH)
def test_uint8_stands_for_image_values(impl):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (40, 3, 3, 2), dtype=torch.uint8, generator=generator).to(DEVICE)
    values = images.float() / 255
    x = values[:4] + 0.1 * torch.randn(4, 3, 3, 2, generator=generator).to(DEVICE)
    score = check(x, images, 0.1, impl=impl)
    expected = mixture_score(x, values, 0.1, impl=impl)
    torch.testing.assert_close(score, expected, rtol=0, atol=0 if DEVICE == "cpu" else 1e-4)


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_data_in_half_precision(impl, dtype):
    x, data = draw(3, 40, 5, 0.2)
    check(x, data.to(dtype), 0.2, impl=impl)


@pytest.mark.parametrize("impl", BOTH)
def test_sigma_per_sample_and_as_a_tensor(impl):
    sigma = torch.tensor([0.05, 0.5, 5.0], device=DEVICE)
    x, data = draw(3, 40, 6, 0.5)
    score = check(x, data, sigma, impl=impl)
    for i in range(3):
        single = mixture_score(x[i : i + 1], data, sigma[i], impl=impl)
        torch.testing.assert_close(score[i : i + 1], single, rtol=1e-6, atol=1e-5)
        number = mixture_score(x[i : i + 1], data, float(sigma[i]), impl=impl)
        assert torch.equal(single, number)


@pytest.mark.parametrize("impl", BOTH)
def test_memory_formats_and_strides(impl):
    x, data = (t.reshape(-1, 3, 4, 2) for t in draw(5, 70, 24, 0.3))
    expected = check(x, data, 0.3, impl=impl)
    x_last, data_last = (t.contiguous(memory_format=torch.channels_last) for t in (x, data))
    assert torch.equal(mixture_score(x_last, data_last, 0.3, impl=impl), expected)
    apart = torch.stack([data, torch.full_like(data, torch.nan)], dim=1).flatten(0, 1)[::2]
    assert torch.equal(mixture_score(x, apart, 0.3, impl=impl), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arguments_are_left_as_they_were(dtype):
    x, data = draw(3, 20, 4, 0.3, dtype=dtype)
    before = x.clone(), data.clone()
    mixture_score(x, data, 0.3, impl="torch")
    assert torch.equal(x, before[0]) and torch.equal(data, before[1])


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 2, 0)])
def test_empty_batches(impl, shape):
    x = torch.zeros(shape, device=DEVICE)
    assert mixture_score(x, torch.ones(4, *shape[1:], device=DEVICE), 1.0, impl=impl).shape == shape


@pytest.mark.parametrize("impl", BOTH)
def test_a_query_that_is_nan_leaves_the_others_alone(impl):
    x, data = draw(4, 70, 5, 0.3)
    expected = mixture_score(x, data, 0.3, impl=impl)
    x[1, 2] = torch.nan
    score = mixture_score(x, data, 0.3, impl=impl)
    assert score[1].isnan().all()
    others = [0, 2, 3]
    torch.testing.assert_close(score[others], expected[others], rtol=1e-6, atol=1e-6)


@needs_kernel
def test_the_kernel_leaves_nothing_unwritten():
    x, data = draw(33, 70, 5, 0.3)
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(1).isnan()
        check(x, data, 0.3, impl="triton")
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill


@needs_kernel
def test_the_operator_is_registered_correctly():
    x, data = draw(3, 10, 4, 1.0)
    precision = torch.ones(3, dtype=torch.float64, device=DEVICE)
    torch.library.opcheck(_mixture_score, (x, data, precision))


@pytest.mark.parametrize("impl", BOTH)
def test_compiles_into_one_graph(impl):
    x, data = draw(3, 50, 4, 0.5)
    sigma = torch.tensor(0.5, device=DEVICE)

    def step(x, sigma):
        return x + 0.1 * mixture_score(x, data, sigma, data_block=20, impl=impl)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, sigma), step(x, sigma), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, r"x is torch.float32 of shape \(3,\)"),
        ({"x": torch.zeros(3, 4, dtype=torch.float16)}, "x is torch.float16"),
        ({"data": torch.zeros(0, 4)}, r"data has shape \(0, 4\); \(N, 4\), N >= 1, is needed"),
        ({"data": torch.zeros(5, 2, 2)}, r"data has shape \(5, 2, 2\)"),
        ({"data": torch.zeros(5, 4, dtype=torch.int64)}, "data is torch.int64"),
        ({"sigma": 0.0}, "sigma = 0.0 must be positive"),
        ({"sigma": math.nan}, "sigma = nan must be positive"),
        ({"sigma": torch.ones(2)}, r"sigma has shape \(2,\); \(\) or \(3,\)"),
        ({"data_block": 0}, "data_block = 0 must be at least 1"),
        ({"x": torch.zeros(3, 4, requires_grad=True)}, "not differentiable"),
        ({"x": torch.zeros(3, 4).double(), "impl": "triton"}, "not possible for mixture_score"),
        ({"impl": "cuda"}, "'cuda' is unknown"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    arguments = {"x": torch.zeros(3, 4), "data": torch.zeros(5, 4), "sigma": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        mixture_score(
            arguments.pop("x"), arguments.pop("data"), arguments.pop("sigma"), **arguments
        )


def test_is_refused_only_while_gradients_are_on():
    x = torch.zeros(3, 4, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(mixture_score(x, torch.ones(1, 4), 2.0), torch.full((3, 4), 0.25))
