"""Influence values against derivatives, the bootstrap, and the spread over other images."""

import numpy as np
import pytest

from scorekit.metrics import influence, uncertainty
from scorekit.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from scorekit.metrics.influence import distance_influences, subset_statistics
from scorekit.metrics.spaces import MetricError
from scorekit.metrics.uncertainty import (
    bootstrap_interval,
    distance_interval,
    extrapolate_distance,
    influence_interval,
    is_resampled,
)


def drawn(n, d, seed, shift=1.0):
    """Skewed, correlated features of which no coordinate is like another."""
    rng = np.random.Generator(np.random.Philox(seed))
    x = rng.standard_normal((n, d)) * np.sqrt(np.linspace(0.5, 2, d))
    x[:, 0] += shift
    x[:, 1] += 0.3 * x[:, 0] ** 2
    return x


def standard(d):
    return FeatureStatistics(mean=np.zeros(d), covariance=np.eye(d), n=10**6)


def test_values_are_derivatives_by_each_images_weight():
    features = drawn(40, 4, 0)
    reference = feature_statistics(drawn(500, 4, 1, shift=0.0))
    found = distance_influences(features, reference)
    assert found.distance == pytest.approx(
        frechet_distance(feature_statistics(features), reference), rel=1e-12
    )

    def distance(weights):
        weights = weights / weights.sum()
        mean = weights @ features
        covariance = (features - mean).T * weights @ (features - mean) * 40 / 39
        statistics = FeatureStatistics(mean=mean, covariance=covariance, n=40)
        return frechet_distance(statistics, reference)

    step = 1e-5
    for i in (0, 7, 39):
        up, down = np.ones(40), np.ones(40)
        up[i], down[i] = 1 + step, 1 - step
        slope = 40 * (distance(up) - distance(down)) / (2 * step)
        # The estimate's covariance is 40/39 of the one that has an influence function.
        assert found.values[i] == pytest.approx(slope, rel=0.03, abs=0.05)


@pytest.mark.parametrize(("n", "d", "shift"), [(400, 6, 1.0), (1000, 16, 1.0), (600, 8, 0.0)])
def test_it_agrees_with_the_bootstrap(n, d, shift):
    features, reference = drawn(n, d, 2, shift), standard(d)
    by_influence = influence_interval(features, reference)
    resampled = bootstrap_interval(features, reference, resamples=600, seed=3)
    assert by_influence.distance == pytest.approx(resampled.distance, rel=1e-9)
    assert by_influence.standard_error == pytest.approx(resampled.standard_error, rel=0.12)
    # The mean of 600 resamples is known to a 24th of their deviation.
    noise = 4 * resampled.standard_error / 600**0.5
    assert by_influence.bias == pytest.approx(resampled.bias, rel=0.05, abs=noise)
    spread = resampled.high - resampled.low
    assert by_influence.low == pytest.approx(resampled.low, abs=0.12 * spread)
    assert by_influence.high == pytest.approx(resampled.high, abs=0.12 * spread)
    assert (by_influence.resamples, by_influence.n, by_influence.level) == (0, n, 0.95)


@pytest.mark.parametrize(("n", "d"), [(200, 8), pytest.param(160, 32, marks=pytest.mark.slow)])
def test_intervals_cover_the_mean_distance_as_often_as_they_say(n, d):
    reference = standard(d)
    target = np.mean(
        [
            frechet_distance(feature_statistics(drawn(n, d, 10_000 + seed)), reference)
            for seed in range(1500)
        ]
    )
    intervals = [influence_interval(drawn(n, d, seed), reference) for seed in range(400)]
    low, high = np.array([(each.low, each.high) for each in intervals]).T
    assert 0.92 <= np.mean((low <= target) & (target <= high)) <= 0.985


def test_the_bias_is_that_of_the_distances():
    d, n, reference = 12, 300, standard(12)
    truth = frechet_distance(feature_statistics(drawn(400_000, d, 5)), reference)
    found = [distance_influences(drawn(n, d, seed), reference) for seed in range(300)]
    bias = np.mean([each.distance for each in found]) - truth
    assert np.mean([each.bias for each in found]) == pytest.approx(bias, rel=0.12)


def test_blocks_change_nothing(monkeypatch):
    features, reference = drawn(100, 5, 0), standard(5)
    whole = distance_influences(features, reference)
    monkeypatch.setattr(influence, "_ROWS", 7)
    parts = distance_influences(features, reference)
    assert parts.values == pytest.approx(whole.values, rel=1e-9)
    assert parts.bias == pytest.approx(whole.bias, rel=1e-9)
    assert parts.distance == pytest.approx(whole.distance, rel=1e-9)


def test_statistics_of_rows_are_theirs_far_from_zero(monkeypatch):
    monkeypatch.setattr(influence, "_ROWS", 8)
    features = drawn(60, 3, 0) + 1e5
    rows = np.arange(1, 60, 2)
    found, right = subset_statistics(features, rows), feature_statistics(features[rows])
    assert found.n == right.n == 30
    assert found.mean == pytest.approx(right.mean, rel=1e-14)
    assert found.covariance == pytest.approx(right.covariance, rel=1e-8)


def test_directions_that_the_reference_lacks_are_no_trouble():
    features = drawn(200, 4, 0)
    flat = FeatureStatistics(mean=np.zeros(4), covariance=np.diag([1.0, 1, 1, 0]), n=10**6)
    found = distance_influences(features, flat)
    resampled = bootstrap_interval(features, flat, resamples=400)
    assert found.standard_error == pytest.approx(resampled.standard_error, rel=0.12)


def test_many_features_are_not_resampled(monkeypatch):
    assert is_resampled(10_000, 64) and is_resampled(4000, 2048)
    assert not is_resampled(5000, 2048) and not is_resampled(50_000, 2048)
    features, reference = drawn(400, 8, 0).astype(np.float32), standard(8)
    small = distance_interval(features, reference, seed=4)
    assert small == bootstrap_interval(features, reference, seed=4)
    line = extrapolate_distance(features, reference, seed=4)
    monkeypatch.setattr(uncertainty, "MAX_RESAMPLED", 3000)
    large = distance_interval(features, reference, seed=4)
    assert large == influence_interval(features, reference)
    same = extrapolate_distance(features, reference, seed=4)
    assert (same.n == line.n).all()
    assert same.distances == pytest.approx(line.distances, rel=1e-9)
    assert same.intercept == pytest.approx(line.intercept, rel=1e-8)
    assert same.standard_error == pytest.approx(line.standard_error, rel=0.2)


def test_bad_input_is_one_line():
    for call, message in (
        (lambda: influence_interval(drawn(8, 8, 0), standard(8)), "n=8 for d=8"),
        (lambda: influence_interval(drawn(9, 3, 0), standard(3), level=1), "level=1"),
        (lambda: influence_interval(drawn(9, 3, 0), standard(4)), "3 dimensions, 4 of"),
        (lambda: distance_interval(drawn(9, 3, 0) * np.nan, standard(3)), "not finite"),
    ):
        with pytest.raises(MetricError, match=message):
            call()
