"""The largest pairwise distance is exact, whatever the float32 screening loses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_device import BOTH, DEVICE, needs_kernel
from scipy.spatial.distance import pdist

from kernels.max_pairwise_distance import (
    TILE,
    _Search,
    max_pairwise_distance,
    max_pairwise_distance_reference,
    max_pairwise_distance_triton,
)

DTYPES = (torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check(rows: torch.Tensor, block_size: int, impl: str) -> None:
    exact = rows.to(torch.float64).numpy()
    distance, (i, j) = max_pairwise_distance(rows.to(DEVICE), block_size=block_size, impl=impl)
    assert 0 <= i < j < len(rows)
    assert distance == pytest.approx(pdist(exact).max(), rel=1e-13, abs=0)
    assert distance == pytest.approx(np.linalg.norm(exact[i] - exact[j]), rel=1e-13, abs=0)


@pytest.mark.parametrize("impl", BOTH)
@given(
    n=st.integers(2, 60),
    dim=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    block_size=st.sampled_from([1, 2, 3, 7, 16, 59, 60, 61, 1000]),
    duplicates=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_equals_scipy_in_float64(impl, n, dim, dtype, block_size, duplicates, seed):
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        rows = torch.randn(n, dim, dtype=torch.float64, generator=generator).to(dtype)
    else:
        rows = torch.randint(0, 256, (n, dim), generator=generator).to(dtype)
    if duplicates:
        rows = rows[torch.randint(0, n, (n,), generator=generator)]
    check(rows, block_size, impl)


@pytest.mark.parametrize("impl", BOTH)
@given(
    n=st.integers(2, 40),
    offset=st.floats(-1e6, 1e6),
    spread=st.floats(1e-9, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_near_duplicates_far_from_the_origin_are_told_apart(impl, n, offset, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = offset + spread * torch.rand(n, 5, dtype=torch.float64, generator=generator)
    check(rows, 7, impl)


@pytest.mark.parametrize("impl", BOTH)
def test_two_far_clusters_whose_widest_pair_differs_by_less_than_float32(impl):
    # Distances of about 2e3 between clusters, told apart by 1e-6: float32 squares round at 0.25.
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(200, 8, dtype=torch.float64)
    rows[:100, 0], rows[100:, 0] = -1e3, 1e3
    rows += 1e-6 * torch.rand(200, 8, dtype=torch.float64, generator=generator)
    check(rows, 64, impl)


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block_size", [32, 2048])
def test_near_ties_that_float32_orders_wrongly(impl, seed, block_size):
    # 40 pairs, each longer than another by 1e-10 of it, at distances from the mean that do not
    # tell which: float32 rounds them all alike.
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(40, 300, dtype=torch.float64, generator=generator)
    lengths = 10 * (1 + 1e-10 * torch.randperm(40, generator=generator).double())[:, None]
    half = torch.nn.functional.normalize(directions) * lengths
    aside = 3 * torch.rand(40, 1, dtype=torch.float64, generator=generator)
    rows = torch.cat([torch.cat([half, aside], dim=1), torch.cat([-half, aside], dim=1)])
    check(rows, block_size, impl)


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_does_not_matter(impl, scale):
    rows = scale * torch.randn(50, 6, dtype=torch.float64)
    check(rows, 16, impl)


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("scale", [1e-26, 1e20])
def test_scale_beyond_the_squares_float32_can_hold(impl, scale):
    generator = torch.Generator().manual_seed(19)
    rows = scale * torch.randn(50, 6, dtype=torch.float64, generator=generator)
    check(rows, 16, impl)


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


@needs_kernel
def test_a_tiles_apparent_maximum_is_not_taken_for_its_true_one(monkeypatch):
    """Without the pairs that exact sweeps start from, float32's choice among near ties is wrong."""
    generator = torch.Generator().manual_seed(4)
    half = torch.randn(40, 300, dtype=torch.float64, generator=generator)
    half = torch.nn.functional.normalize(half) * 10
    half *= (1 + 1e-10 * torch.randperm(40, generator=generator).double())[:, None]
    measure = _Search.measure
    # The two sweeps are the calls that measure a single row against all.
    monkeypatch.setattr(
        _Search,
        "measure",
        lambda self, u, v: None if len(v) == 80 else measure(self, u, v),
    )
    check(torch.cat([half, -half]), 2048, "triton")


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_every_pair_tied(impl, dtype):
    check(torch.eye(150, dtype=dtype).repeat(2, 1), 64, impl)


def test_ties_between_rows_of_integers_are_not_measured_one_by_one(monkeypatch):
    measured = 0
    measure = _Search.measure

    def counting(self, u, v):
        nonlocal measured
        measured += len(u)
        measure(self, u, v)

    monkeypatch.setattr(_Search, "measure", counting)
    rows = 7 * torch.eye(300)
    distance, _ = max_pairwise_distance(rows, block_size=100, impl="torch")
    assert distance == pytest.approx(7 * 2**0.5, rel=1e-15)
    assert 1 <= measured <= 6  # at most one in each block, of 45,000 tied pairs


@given(n=st.integers(2, 12), dim=st.integers(0, 5), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_reference_is_the_definition(n, dim, seed):
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    distances = {
        (i, j): math.dist(rows[i].tolist(), rows[j].tolist()) for i in range(n) for j in range(i)
    }
    distance, (i, j) = max_pairwise_distance_reference(rows)
    assert distance == pytest.approx(max(distances.values()), rel=1e-14)
    assert i < j
    assert distances[j, i] == pytest.approx(distance, rel=1e-14)


@needs_kernel
@pytest.mark.parametrize(("n", "dim"), [(1, 3), (2, 1), (63, 5), (64, 32), (65, 33), (130, 0)])
def test_the_kernel_finds_each_tiles_maximum(n, dim):
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(n)).to(DEVICE)
    tiles = -(-n // TILE)
    first, second = torch.triu_indices(tiles, tiles, device=DEVICE)
    out = (
        torch.full(first.shape, torch.nan, device=DEVICE),
        torch.full(first.shape, -(2**31), dtype=torch.int32, device=DEVICE),
    )
    # Rows a column apart: the launcher has to make them contiguous.
    spaced = torch.stack([rows, torch.full_like(rows, torch.nan)], dim=2)[:, :, 0]
    maximum, position = max_pairwise_distance_triton(spaced, first, second, out=out)
    assert maximum is out[0] and position is out[1]
    squared = (rows[:, None].double() - rows.double()).square().sum(2)
    squared = squared.masked_fill(torch.ones_like(squared).tril() == 1, -torch.inf)
    for k, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        tile = squared[i * TILE : (i + 1) * TILE, j * TILE : (j + 1) * TILE]
        assert float(maximum[k]) == pytest.approx(float(tile.max()), rel=1e-5, abs=1e-5)
        if tile.max() > 0:
            p, q = divmod(int(position[k]), TILE)
            assert float(tile[p, q]) == pytest.approx(float(tile.max()), rel=1e-5)


def test_squares_beyond_float64_are_refused():
    with pytest.raises(ValueError, match="overflow float64"):
        max_pairwise_distance(torch.tensor([[1e200] * 2, [-1e200] * 2], dtype=torch.float64))


def test_an_empty_block_is_refused():
    with pytest.raises(ValueError, match="block_size = 0 must be at least 1"):
        max_pairwise_distance(torch.zeros(3, 2), block_size=0)
