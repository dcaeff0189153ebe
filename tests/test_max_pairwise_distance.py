"""The largest pairwise distance is exact, whatever the float32 screening loses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from kernels.max_pairwise_distance import max_pairwise_distance

DTYPES = (torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check(rows: torch.Tensor, block_size: int) -> None:
    exact = rows.to(torch.float64).numpy()
    distance, (i, j) = max_pairwise_distance(rows, block_size=block_size)
    assert 0 <= i < j < len(rows)
    assert distance == pytest.approx(pdist(exact).max(), rel=1e-13, abs=0)
    assert distance == pytest.approx(np.linalg.norm(exact[i] - exact[j]), rel=1e-13, abs=0)


@given(
    n=st.integers(2, 60),
    dim=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    block_size=st.sampled_from([1, 2, 3, 7, 16, 59, 60, 61, 1000]),
    duplicates=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_equals_scipy_in_float64(n, dim, dtype, block_size, duplicates, seed):
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        rows = torch.randn(n, dim, dtype=torch.float64, generator=generator).to(dtype)
    else:
        rows = torch.randint(0, 256, (n, dim), generator=generator).to(dtype)
    if duplicates:
        rows = rows[torch.randint(0, n, (n,), generator=generator)]
    check(rows, block_size)


@given(
    n=st.integers(2, 40),
    offset=st.floats(-1e6, 1e6),
    spread=st.floats(1e-9, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_near_duplicates_far_from_the_origin_are_told_apart(n, offset, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = offset + spread * torch.rand(n, 5, dtype=torch.float64, generator=generator)
    check(rows, 7)


def test_two_far_clusters_whose_widest_pair_differs_by_less_than_float32():
    # Distances of about 2e3 between clusters, told apart by 1e-6: float32 squares round at 0.25.
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(200, 8, dtype=torch.float64)
    rows[:100, 0], rows[100:, 0] = -1e3, 1e3
    rows += 1e-6 * torch.rand(200, 8, dtype=torch.float64, generator=generator)
    check(rows, 64)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block_size", [32, 2048])
def test_near_ties_that_float32_orders_wrongly(seed, block_size):
    # 40 pairs, each longer than another by 1e-10 of it, at distances from the mean that do not
    # tell which: float32 rounds them all alike.
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(40, 300, dtype=torch.float64, generator=generator)
    lengths = 10 * (1 + 1e-10 * torch.randperm(40, generator=generator))[:, None]
    half = torch.nn.functional.normalize(directions) * lengths
    aside = 3 * torch.rand(40, 1, dtype=torch.float64, generator=generator)
    rows = torch.cat([torch.cat([half, aside], dim=1), torch.cat([-half, aside], dim=1)])
    check(rows, block_size)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_does_not_matter(scale):
    rows = scale * torch.randn(50, 6, dtype=torch.float64)
    check(rows, 16)


@pytest.mark.parametrize("scale", [1e-26, 1e20])
def test_scale_beyond_the_squares_float32_can_hold(scale):
    generator = torch.Generator().manual_seed(19)
    rows = scale * torch.randn(50, 6, dtype=torch.float64, generator=generator)
    check(rows, 16)


@pytest.mark.parametrize("block_size", [1, 3, 2048])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e9])
def test_equal_rows_have_distance_zero(value, block_size):
    distance, (i, j) = max_pairwise_distance(torch.full((9, 4), value), block_size=block_size)
    assert distance == 0
    assert 0 <= i < j < 9


def test_two_rows():
    distance, pair = max_pairwise_distance(torch.tensor([[0.0, 3.0], [4.0, 0.0]]))
    assert distance == 5
    assert pair == (0, 1)


def test_uint8_is_taken_as_it_is():
    distance, pair = max_pairwise_distance(torch.tensor([[255], [7], [0]], dtype=torch.uint8))
    assert distance == 255
    assert pair == (0, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 5, 9])
def test_values_that_are_not_finite_are_refused(value, at):
    rows = torch.zeros(10, 3)
    rows[at, 1] = value
    with pytest.raises(ValueError, match="NaN or Inf"):
        max_pairwise_distance(rows, block_size=4)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (0, 5), (2, 3, 4)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(N, D\) with N >= 2"):
        max_pairwise_distance(torch.zeros(shape))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_callers_matmul_precision_neither_matters_nor_changes(precision):
    rows = 100 + torch.randn(100, 3072, generator=torch.Generator().manual_seed(1))
    expected = pdist(rows.double().numpy()).max()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        distance, _ = max_pairwise_distance(rows, block_size=32)
        assert torch.get_float32_matmul_precision() == precision
        with pytest.raises(ValueError, match="NaN"):
            max_pairwise_distance(torch.full((3, 2), math.nan))
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert distance == pytest.approx(expected, rel=1e-13)
