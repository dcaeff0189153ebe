"""The exponential moving average of Technique 5."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scorekit.techniques.ema import check_momentum, ema_update


@given(
    momentum=st.floats(0, 1, exclude_max=True),
    values=st.lists(st.floats(-100, 100), min_size=1, max_size=50),
    start=st.floats(-100, 100),
)
@settings(deadline=None)
def test_after_k_steps_the_average_is_the_weighted_sum(momentum, values, start):
    average = torch.tensor([start], dtype=torch.float64)
    for value in values:
        ema_update([average], [torch.tensor([value], dtype=torch.float64)], momentum)
    k = len(values)
    weights = (1 - momentum) * momentum ** np.arange(k - 1, -1, -1.0)
    expected = momentum**k * start + float((weights * values).sum())
    assert float(average) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 3000))
@settings(max_examples=20, deadline=None)
def test_a_constant_is_approached_geometrically(momentum, k):
    average, target = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for _ in range(k):
        ema_update([average], [target], momentum)
    assert average.tolist() == pytest.approx([1 - momentum**k] * 3, abs=1e-9)


def test_the_default_momentum_is_the_papers():
    average = torch.zeros(1, dtype=torch.float64)
    ema_update([average], [torch.ones(1, dtype=torch.float64)])
    assert float(average) == pytest.approx(0.001, rel=1e-12)


def test_float32_averages_stay_close_to_float64():
    generator = torch.Generator().manual_seed(0)
    average, exact = torch.ones(100), torch.ones(100, dtype=torch.float64)
    for _ in range(2000):
        value = 1 + 0.1 * torch.randn(100, generator=generator)
        ema_update([average], [value], 0.999)
        exact = 0.999 * exact + 0.001 * value.double()
    torch.testing.assert_close(average.double(), exact, rtol=2e-5, atol=0)


def test_networks_are_averaged_in_place_and_the_original_is_left_alone():
    network, averaged = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    before = [p.detach().clone() for p in network.parameters()]
    expected = [
        0.9 * a.detach() + 0.1 * p.detach()
        for a, p in zip(averaged.parameters(), network.parameters(), strict=True)
    ]
    addresses = [p.data_ptr() for p in averaged.parameters()]
    ema_update(averaged.parameters(), network.parameters(), 0.9)
    assert [p.data_ptr() for p in averaged.parameters()] == addresses
    for ours, theirs in zip(averaged.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs)
        assert ours.grad is None
    for ours, theirs in zip(network.parameters(), before, strict=True):
        assert torch.equal(ours, theirs)


def test_momentum_zero_copies():
    average = torch.zeros(5)
    ema_update([average], [torch.arange(5.0)], 0.0)
    assert torch.equal(average, torch.arange(5.0))


@pytest.mark.parametrize("momentum", [1.0, -1e-9, 1.5, math.inf, math.nan])
def test_a_momentum_out_of_range_is_refused_before_anything_changes(momentum):
    average = torch.zeros(2)
    with pytest.raises(ValueError, match=r"ema_momentum = .* must lie in \[0, 1\)"):
        ema_update([average], [torch.ones(2)], momentum)
    with pytest.raises(ValueError, match=r"ema_momentum = .* must lie in \[0, 1\)"):
        check_momentum(momentum)
    assert not average.any()
