"""Distances at infinite n and their intervals, on Gaussians whose distance is known."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorekit.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from scorekit.metrics.spaces import MetricError
from scorekit.metrics.uncertainty import bootstrap_interval, extrapolate_distance


def gaussian(d: int, shift: float) -> FeatureStatistics:
    """A generator's Gaussian: mean (shift, 0, ...), variances from 1/2 to 2."""
    mean = np.zeros(d)
    mean[0] = shift
    return FeatureStatistics(mean=mean, covariance=np.diag(np.linspace(0.5, 2, d)), n=10**6)


def standard(d: int) -> FeatureStatistics:
    return FeatureStatistics(mean=np.zeros(d), covariance=np.eye(d), n=10**6)


def draw(model: FeatureStatistics, n: int, seed: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(seed))
    spread = np.sqrt(model.covariance.diagonal())
    return model.mean + spread * rng.standard_normal((n, len(spread)))


# --- extrapolation --------------------------------------------------------------------------------


def test_the_intercept_is_nearer_the_truth_than_the_distance():
    model, reference = gaussian(48, 1), standard(48)
    truth = frechet_distance(model, reference)
    plain, intercepts = [], []
    for seed in range(20):
        features = draw(model, 1000, seed)
        result = extrapolate_distance(features, reference, seed=seed)
        assert result.n[-1] == 1000
        assert result.distances[-1] == pytest.approx(
            frechet_distance(feature_statistics(features), reference), rel=1e-9
        )
        plain.append(result.distances[-1])
        intercepts.append(result.intercept)
        assert result.slope > 0 and 0 < result.standard_error < 0.1 * truth
    assert (np.abs(np.array(intercepts) - truth) < np.abs(np.array(plain) - truth)).all()
    assert np.mean(plain) > 1.15 * truth
    assert np.mean(intercepts) == pytest.approx(truth, rel=0.03)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(60, 200))
def test_points_are_distances_of_subsets_and_the_line_is_theirs(seed, d, n):
    features = draw(gaussian(d, 0.5), n, seed).astype(np.float32)
    result = extrapolate_distance(features, standard(d), n_points=9, seed=seed)
    assert result.n.dtype == np.int64 and (np.diff(result.n) > 0).all() and result.n[-1] == n
    assert result.n.shape == result.distances.shape and (result.distances >= 0).all()
    slope, intercept = np.polyfit(1 / result.n, result.distances, 1)
    assert result.slope == pytest.approx(slope, rel=1e-6, abs=1e-6)
    assert result.intercept == pytest.approx(max(0, intercept), rel=1e-6, abs=1e-6)
    assert result.bounded == (result.intercept == 0)
    again = extrapolate_distance(features, standard(d), n_points=9, seed=seed)
    assert again.intercept == result.intercept


def test_no_intercept_is_negative_and_a_bounded_one_says_so():
    found = []
    for seed in range(10):
        features = draw(standard(64), 144, seed).astype(np.float32)
        other = feature_statistics(draw(standard(64), 1500, 1000 + seed).astype(np.float32))
        found.append(extrapolate_distance(features, other, seed=seed))
    assert all(result.intercept >= 0 for result in found)
    assert any(result.bounded for result in found)


@pytest.mark.parametrize(("shift", "n", "d"), [(0.5, 500, 8), (0.2, 300, 24)])
def test_the_standard_error_is_the_spread_over_other_images_of_the_model(shift, n, d):
    model, reference = gaussian(d, shift), standard(d)
    found = [extrapolate_distance(draw(model, n, s), reference, seed=s) for s in range(30)]
    spread = np.std([result.intercept for result in found], ddof=1)
    stated = np.mean([result.standard_error for result in found])
    assert 0.7 * spread < stated < 2 * spread


def test_too_few_samples_for_a_line_are_warned_about(caplog):
    model, reference = gaussian(16, 1), standard(16)
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        extrapolate_distance(draw(model, 200, 0), reference)
        assert caplog.text == ""
        result = extrapolate_distance(draw(model, 30, 0), reference)
    assert result.n[0] == 15 and "n_min=15 samples for d=16 dimensions" in caplog.text


def test_distances_are_right_where_the_covariance_is_singular():
    features, reference = (
        draw(gaussian(40, 1), 25, 0),
        feature_statistics(draw(standard(40), 90, 1)),
    )
    result = extrapolate_distance(features, reference, n_min=5)
    expected = frechet_distance(feature_statistics(features), reference)
    assert result.distances[-1] == pytest.approx(expected, rel=1e-6)


def test_a_shift_far_from_zero_loses_no_digits():
    model, reference = gaussian(6, 1), standard(6)
    far = FeatureStatistics(mean=reference.mean + 1e6, covariance=reference.covariance, n=10**6)
    features = draw(model, 300, 0)
    near = bootstrap_interval(features, reference, resamples=20)
    moved = bootstrap_interval(features + 1e6, far, resamples=20)
    assert moved.low == pytest.approx(near.low, rel=1e-6)
    assert moved.high == pytest.approx(near.high, rel=1e-6)


# --- bootstrap ------------------------------------------------------------------------------------


def test_intervals_cover_the_mean_distance_as_often_as_they_say():
    model, reference, n = gaussian(8, 1), standard(8), 200
    target = np.mean(
        [
            frechet_distance(feature_statistics(draw(model, n, 10_000 + seed)), reference)
            for seed in range(2000)
        ]
    )
    intervals = [
        bootstrap_interval(draw(model, n, seed), reference, resamples=100, seed=seed)
        for seed in range(300)
    ]
    low, high, bias = np.array([(each.low, each.high, each.bias) for each in intervals]).T
    covered = np.mean((low <= target) & (target <= high))
    plain = np.mean((low + bias <= target) & (target <= high + bias))
    assert 0.92 <= covered <= 0.98
    assert plain < covered - 0.03  # the quantiles themselves, not moved down by the bias
    # The bias of the resamples' distances is about that of the sample's.
    truth = frechet_distance(model, reference)
    assert bias.mean() == pytest.approx(target - truth, rel=0.2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(20, 90))
def test_intervals_hold_the_distance_of_the_features(seed, d, n):
    features, reference = draw(gaussian(d, 1), n, seed), standard(d)
    got = bootstrap_interval(features, reference, resamples=40, seed=seed)
    distance = frechet_distance(feature_statistics(features), reference)
    assert got.distance == pytest.approx(distance, rel=1e-9)
    assert 0 <= got.low < got.distance < got.high and got.standard_error > 0
    assert (got.n, got.resamples, got.level) == (n, 40, 0.95)
    assert bootstrap_interval(features, reference, resamples=40, seed=seed) == got
    narrow = bootstrap_interval(features, reference, resamples=40, seed=seed, level=0.5)
    assert got.low <= narrow.low < narrow.high <= got.high


def test_more_images_narrow_the_interval():
    model, reference = gaussian(6, 1), standard(6)
    widths = []
    for n in (100, 400, 1600):
        got = bootstrap_interval(draw(model, n, 0), reference)
        widths.append(got.high - got.low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.4)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.4)


# --- errors ---------------------------------------------------------------------------------------

GOOD = draw(gaussian(3, 1), 40, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: extrapolate_distance(GOOD, standard(4)), "3 dimensions, 4 of the reference"),
        (lambda: extrapolate_distance(GOOD, standard(3), n_points=4), "n_points=4, .* at least 5"),
        (lambda: extrapolate_distance(GOOD, standard(3), n_min=40), "n_min=40: .* n=40"),
        (lambda: extrapolate_distance(GOOD, standard(3), n_min=38), "leaves 3 distinct n up to"),
        (lambda: extrapolate_distance(GOOD[:2], standard(3)), "n_min=2"),
        (lambda: bootstrap_interval(GOOD * np.nan, standard(3)), "40 of 40 rows are not finite"),
        (lambda: bootstrap_interval(GOOD, standard(3), resamples=19), "resamples=19"),
        (lambda: bootstrap_interval(GOOD, standard(3), level=1), "level=1: "),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(MetricError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
