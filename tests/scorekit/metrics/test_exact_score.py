"""A mixture whose score is known: its true samples, and what is measured of others."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import sqrtm

from scorekit.metrics.exact_score import ImageMixture, moments

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 1, 2, 2)).astype(np.uint8)


@pytest.fixture
def mixture() -> ImageMixture:
    return ImageMixture(IMAGES)


def test_measures_are_those_computed_by_hand(mixture: ImageMixture) -> None:
    rng = np.random.default_rng(1)
    # Components 0, 1 and 3 are met, by 10, 20 and 30 samples.
    index = np.repeat([0, 1, 3], [10, 20, 30])
    noise = rng.normal(0, 0.01, (60, 1, 2, 2))
    found = mixture.quality(torch.from_numpy((IMAGES[index] / 255 + noise).astype(np.float32)))
    assert found.covered == 3 / 6
    assert found.entropy == pytest.approx(stats.entropy([10, 20, 30]))
    assert found.off == pytest.approx(math.sqrt((noise**2).mean()), rel=1e-5)
    rows, centres = (IMAGES[index] / 255 + noise).reshape(60, 4), IMAGES.reshape(6, 4) / 255
    a, b = np.cov(rows.T), np.cov(centres.T, bias=True)
    shift = rows.mean(0) - centres.mean(0)
    expected = shift @ shift + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert found.distance == pytest.approx(expected, rel=1e-4)


def test_the_components_themselves_are_at_no_distance_but_the_divisor(
    mixture: ImageMixture,
) -> None:
    found = mixture.quality(torch.from_numpy(IMAGES / 255))
    assert found.covered == 1 and found.entropy == pytest.approx(math.log(6)) and found.off < 1e-7
    # A sample's covariance is N / (N - 1) that of the distribution.
    trace = np.trace(np.cov(IMAGES.reshape(6, 4).T / 255, bias=True))
    assert found.distance == pytest.approx(trace * (math.sqrt(6 / 5) - 1) ** 2, rel=1e-6)
    assert np.allclose(
        moments(IMAGES.reshape(6, 4)).covariance, np.cov(IMAGES.reshape(6, 4).T, bias=1)
    )


def test_fewer_samples_than_pixels_have_no_distance(mixture: ImageMixture) -> None:
    assert mixture.quality(torch.zeros(4, 1, 2, 2)).distance is None
    assert mixture.quality(torch.zeros(5, 1, 2, 2)).distance is not None
    assert mixture.quality(torch.zeros(4, 1, 2, 2)).entropy == 0


def test_true_samples_are_components_drawn_alike(mixture: ImageMixture) -> None:
    noisy, drawn = mixture.draw(6000, sigma=0.01, seed=3)
    assert mixture.quality(noisy).off == pytest.approx(0.01, rel=0.02)
    found = mixture.quality(drawn)
    assert found.off < 1e-3  # denoised
    assert found.entropy == pytest.approx(math.log(6), abs=3e-3)
    assert torch.equal(drawn, mixture.draw(6000, sigma=0.01, seed=3)[1])
    assert not torch.equal(drawn, mixture.draw(6000, sigma=0.01, seed=4)[1])
    # At a larger noise scale denoised samples are posterior means, between the components.
    assert mixture.quality(mixture.draw(100, sigma=0.5, seed=3)[1]).off > 0.01


def test_what_is_no_set_of_images_is_refused() -> None:
    for bad in (IMAGES / 255, IMAGES[:1], IMAGES.reshape(6, 4)):
        with pytest.raises(ValueError, match=r"uint8 \(N, C, H, W\), N >= 2, is needed"):
            ImageMixture(bad)
