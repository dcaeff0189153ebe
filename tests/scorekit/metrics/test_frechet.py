"""Fréchet distances: closed forms, torch-fidelity's own value; reference samples."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from scorekit.files import CorruptFile
from scorekit.metrics.baselines import pixel_gaussian_samples, uniform_noise_samples
from scorekit.metrics.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    load_statistics,
    save_statistics,
)
from scorekit.metrics.spaces import MetricError


def random_features(seed: int, n: int, d: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(seed))
    mix = rng.standard_normal((d, d)) + 2 * np.eye(d)
    return rng.standard_normal((n, d)) @ mix + rng.standard_normal(d)


# --- the distance ---------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 9), st.floats(0, 9)]),
        min_size=1,
        max_size=8,
    )
)
def test_commuting_gaussians_in_closed_form(rows):
    m1, m2, v1, v2 = np.array(rows).T
    a = FeatureStatistics(mean=m1, covariance=np.diag(v1), n=9)
    b = FeatureStatistics(mean=m2, covariance=np.diag(v2), n=9)
    closed = ((m1 - m2) ** 2).sum() + ((np.sqrt(v1) - np.sqrt(v2)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(closed, rel=1e-9, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 4))
def test_two_dimensional_gaussians_in_closed_form(seed, scale):
    # In 2-D, tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for M = S1 S2.
    a = feature_statistics(random_features(seed, 50, 2))
    b = feature_statistics(scale * random_features(seed + 1, 50, 2))
    m = a.covariance @ b.covariance
    root_trace = np.sqrt(np.trace(m) + 2 * np.sqrt(np.linalg.det(m)))
    closed = (
        ((a.mean - b.mean) ** 2).sum()
        + np.trace(a.covariance)
        + np.trace(b.covariance)
        - 2 * root_trace
    )
    assert frechet_distance(a, b) == pytest.approx(closed, rel=1e-9, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_agrees_with_torch_fidelity(seed, d):
    x, y = random_features(seed, 20 * d, d), random_features(seed + 1, 25 * d, d)
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(torch.from_numpy(x)),
        fid_features_to_statistics(torch.from_numpy(y)),
        verbose=False,
    )["frechet_inception_distance"]
    ours = frechet_distance(feature_statistics(x), feature_statistics(y))
    assert ours == pytest.approx(theirs, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 24))
def test_symmetric_and_invariant_under_rotation_and_shift(seed, d):
    x, y = random_features(seed, 8 * d, d), random_features(seed + 1, 8 * d, d)
    rng = np.random.Generator(np.random.Philox(seed))
    rotation, _ = np.linalg.qr(rng.standard_normal((d, d)))
    shift = rng.standard_normal(d)
    a, b = feature_statistics(x), feature_statistics(y)
    value = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(value, rel=1e-9)
    turned = frechet_distance(
        feature_statistics(x @ rotation + shift), feature_statistics(y @ rotation + shift)
    )
    assert turned == pytest.approx(value, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 60))
def test_zero_for_itself_even_when_singular(seed, d, n):
    a = feature_statistics(random_features(seed, n, d))
    assert 0 <= frechet_distance(a, a) <= 1e-5 * np.trace(a.covariance)


def test_the_references_root_is_computed_once(monkeypatch):
    reference = feature_statistics(random_features(0, 60, 5))
    others = [feature_statistics(random_features(seed, 60, 5)) for seed in range(1, 4)]
    decompositions = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda m: decompositions.append(1) or eigh(m))
    assert len({frechet_distance(other, reference) for other in others}) == 3
    assert len(decompositions) == 1
    assert np.allclose(reference.root @ reference.root, reference.covariance, rtol=1e-12)


def test_bad_statistics_are_refused():
    good = feature_statistics(random_features(0, 20, 3))
    bad = FeatureStatistics(mean=np.zeros(3), covariance=np.diag([1.0, 1.0, -0.1]), n=9)
    with pytest.raises(MetricError, match=r"eigenvalue -0\.1 beside 1; none may be negative"):
        frechet_distance(good, bad)
    with pytest.raises(MetricError, match=r"eigenvalue -.* beside .*; none may be negative"):
        frechet_distance(bad, good)
    with pytest.raises(MetricError, match="3 and 4 dimensions"):
        frechet_distance(good, feature_statistics(random_features(0, 20, 4)))


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 40, 9001])
def test_statistics_are_numpys(n):
    x = (random_features(n, n, 5) + 1000).astype(np.float32)
    got = feature_statistics(x)
    assert got.n == n and got.mean.dtype == got.covariance.dtype == np.float64
    assert np.allclose(got.mean, x.astype(np.float64).mean(axis=0), rtol=1e-12)
    assert np.allclose(got.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9)


def test_too_few_samples_are_warned_about_with_the_numbers(caplog):
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        feature_statistics(np.random.default_rng(0).normal(size=(9, 8)))
        assert caplog.text == ""
        feature_statistics(np.random.default_rng(0).normal(size=(8, 8)))
    assert "n=8 samples for d=8 dimensions" in caplog.text


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((1, 4)), r"\(1, 4\) given"),
        (np.zeros(4), r"\(4,\) given"),
        (np.array([[1.0], [np.nan], [np.inf]]), "2 of 3 rows are not finite"),
    ],
)
def test_features_that_have_no_statistics(features, message):
    with pytest.raises(MetricError, match=message):
        feature_statistics(features)


# --- statistics in files --------------------------------------------------------------------------


def same(a: FeatureStatistics, b: FeatureStatistics) -> bool:
    return (
        np.array_equal(a.mean, b.mean) and np.array_equal(a.covariance, b.covariance) and a.n == b.n
    )


def test_statistics_are_read_as_they_were_written(tmp_path):
    statistics = feature_statistics(random_features(0, 60, 5))
    save_statistics(tmp_path / "s.npz", statistics)
    assert same(load_statistics(tmp_path / "s.npz"), statistics)
    assert same(load_statistics(tmp_path / "s.npz", n=60), statistics)
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]
    with pytest.raises(MetricError, match=r"n=50: .*s\.npz holds n=60"):
        load_statistics(tmp_path / "s.npz", n=50)


def test_published_layouts_are_read(tmp_path):
    features = random_features(0, 60, 5).astype(np.float32)
    statistics = feature_statistics(features)
    np.savez(tmp_path / "mu.npz", mu=statistics.mean, sigma=statistics.covariance, more=np.ones(3))
    assert same(load_statistics(tmp_path / "mu.npz", n=60), statistics)
    with pytest.raises(MetricError, match=r"n=None: .* does not hold n; give the number of images"):
        load_statistics(tmp_path / "mu.npz")
    np.savez_compressed(tmp_path / "pool.npz", pool_3=features, logits=np.ones((60, 9)))
    assert same(load_statistics(tmp_path / "pool.npz"), statistics)
    single = {"mu": statistics.mean, "sigma": statistics.covariance}
    np.savez(tmp_path / "single.npz", **{key: v.astype(np.float32) for key, v in single.items()})
    read = load_statistics(tmp_path / "single.npz", n=60)
    assert read.mean.dtype == read.covariance.dtype == np.float64
    assert frechet_distance(read, statistics) < 1e-5


GOOD = {"mean": np.zeros(3), "covariance": np.eye(3), "n": 9}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"weights": np.zeros(3)},
            "holds weights; mean, covariance and n, mu and sigma",
        ),
        ({}, "holds nothing"),
        (GOOD | {"covariance": np.eye(4)}, r"mean is \(3,\) and covariance \(4, 4\)"),
        (GOOD | {"mean": np.full(3, np.nan)}, "not finite"),
        (GOOD | {"covariance": np.triu(np.ones((3, 3)))}, "not symmetric"),
        (GOOD | {"n": 1}, "n is 1; a whole number from 2"),
        (GOOD | {"n": [9, 9]}, r"n is \[9 9\]"),
        (GOOD | {"mean": np.array(["a", "b", "c"])}, "mean is <U1"),
        ({"pool_3": np.zeros((1, 3))}, r"pool_3: .*shape \(1, 3\)"),
        ({"mu": np.array([None, {}, 1]), "sigma": np.eye(3)}, "no .npz of statistics .*pickle"),
    ],
)
def test_files_that_hold_no_statistics(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(CorruptFile, match=message):
        load_statistics(tmp_path / "s.npz", n=9)


def test_damaged_files_of_statistics(tmp_path):
    path = tmp_path / "s.npz"
    save_statistics(path, feature_statistics(random_features(0, 60, 5)))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    np.save(tmp_path / "array.npy", np.zeros(3))
    for damaged in (b"", b"junk", whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile, match=r"s\.npz: is no \.npz of statistics"):
            load_statistics(path)
    with pytest.raises(CorruptFile, match="is one array"):
        load_statistics(tmp_path / "array.npy")
    with pytest.raises(FileNotFoundError):
        load_statistics(tmp_path / "absent.npz")


# --- reference rows -------------------------------------------------------------------------------


def test_pixel_gaussian_has_the_mean_and_covariance_of_the_pixels():
    rng = np.random.Generator(np.random.Philox(1))
    mix = rng.standard_normal((12, 12)) * 8
    images = np.rint((rng.standard_normal((4000, 12)) @ mix + 128).clip(0, 255))
    images = images.astype(np.uint8).reshape(-1, 3, 2, 2)
    samples = pixel_gaussian_samples(images, 20_000, 0)
    assert samples.shape == (20_000, 3, 2, 2) and samples.dtype == np.uint8
    flat, drawn = images.reshape(-1, 12).astype(float), samples.reshape(-1, 12).astype(float)
    assert np.abs(flat.mean(0) - drawn.mean(0)).max() < 2
    scale = np.cov(flat, rowvar=False).max()
    assert np.abs(np.cov(flat, rowvar=False) - np.cov(drawn, rowvar=False)).max() < 0.08 * scale


def test_pixel_gaussian_of_large_images_is_the_same_gaussian():
    rng = np.random.Generator(np.random.Philox(1))
    images = (
        np.rint(
            128
            + 20 * rng.standard_normal((50, 1, 1, 1))
            + 10 * rng.standard_normal((50, 3, 40, 40))
        )
        .clip(0, 255)
        .astype(np.uint8)
    )
    samples = pixel_gaussian_samples(images, 2000, 0)
    assert samples.shape == (2000, 3, 40, 40)
    assert np.abs(samples.mean(0) - images.mean(0)).max() < 3
    brightness = images.mean(axis=(1, 2, 3)).std(ddof=1)
    assert samples.mean(axis=(1, 2, 3)).std() == pytest.approx(brightness, rel=0.1)
    spread = images.std(axis=0, ddof=1).mean()
    assert samples.std(axis=0).mean() == pytest.approx(spread, rel=0.05)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 5), st.integers(0, 10**9))
def test_reference_samples_are_functions_of_the_seed(seed, n, other):
    assume(seed != other)
    images = uniform_noise_samples((1, 4, 4), 30, 1)
    for draw in (
        lambda s: pixel_gaussian_samples(images, n, s),
        lambda s: uniform_noise_samples((1, 4, 4), n, s),
    ):
        assert np.array_equal(draw(seed), draw(seed)) and draw(seed).shape == (n, 1, 4, 4)
        assert not np.array_equal(draw(seed), draw(other))


def test_uniform_noise_reaches_every_value():
    values, counts = np.unique(uniform_noise_samples((3, 16, 16), 200, 0), return_counts=True)
    assert np.array_equal(values, np.arange(256)) and counts.min() > 0.8 * counts.mean()


def test_pixel_gaussian_needs_two_images():
    with pytest.raises(MetricError, match="N >= 2"):
        pixel_gaussian_samples(np.zeros((1, 1, 8, 8), np.uint8), 4, 0)
    with pytest.raises(MetricError, match="float64"):
        pixel_gaussian_samples(np.zeros((5, 1, 8, 8)), 4, 0)
