"""Quantiles of distances: exact for few images, within their intervals for many."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from scorekit.techniques.distances import distance_quantiles
from scorekit.techniques.noise_scales import initial_noise_scale


def images(n=120, seed=0, dtype=np.uint8):
    drawn = np.random.default_rng(seed).integers(0, 256, (n, 1, 4, 4), dtype=np.uint8)
    return drawn if dtype == np.uint8 else (drawn / 255).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_few_images_are_measured_pair_by_pair(dtype, as_tensor):
    given = images(dtype=dtype)
    expected = pdist(images(dtype=np.float64).reshape(120, -1))
    found = distance_quantiles(torch.from_numpy(given) if as_tensor else given, [0.1, 0.5, 0.999])
    assert [q.quantile for q in found] == [0.1, 0.5, 0.999]
    for q in found:
        assert q.value == pytest.approx(np.quantile(expected, q.quantile), rel=1e-6)
        assert q.exact and q.low == q.high == q.value and q.n_pairs == len(expected) == 7140
    assert found[-1].value <= initial_noise_scale(given) == pytest.approx(expected.max(), rel=1e-6)


def test_intervals_of_drawn_pairs_hold_the_quantile_as_often_as_they_say():
    given = images(n=300)
    expected = pdist(given.reshape(300, -1) / 255)
    held, values = [], []
    for seed in range(100):
        for q in distance_quantiles(given, [0.5, 0.95], max_elements=16 * 2000, seed=seed):
            assert not q.exact and q.n_pairs == 2000
            held.append(q.low <= np.quantile(expected, q.quantile) <= q.high)
            values.append(q.value)
    # 95 %, of 200 that go by pairs.
    assert 0.90 < np.mean(held) < 0.99
    assert len(set(values)) == 200


def test_a_seed_decides_the_pairs():
    one, again, other = (
        distance_quantiles(images(300), [0.5], max_elements=3200, seed=s) for s in (0, 0, 1)
    )
    assert one == again != other


@pytest.mark.parametrize(
    ("given", "quantiles", "message"),
    [
        (images(1), [0.5], "at least 2 images, got 1"),
        (images(), [0.5, 1.0], r"quantile = 1.0 must lie in \(0, 1\)"),
        (images(), [0.0], r"quantile = 0.0 must lie in \(0, 1\)"),
        (images().astype(np.int64), [0.5], "images are int64: uint8 or floating point"),
    ],
)
def test_what_has_no_quantile_is_refused(given, quantiles, message):
    with pytest.raises(ValueError, match=message):
        distance_quantiles(given, quantiles)
