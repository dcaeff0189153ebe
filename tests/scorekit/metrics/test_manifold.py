"""Precision, recall, density and coverage: their definitions by brute force, in any blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from scorekit.metrics import manifold
from scorekit.metrics.manifold import density_coverage, manifold_metrics, precision_recall
from scorekit.metrics.spaces import MetricError


def normal(seed: int, n: int, d: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).standard_normal((n, d))


def inside(points: np.ndarray, members: np.ndarray, k: int) -> np.ndarray:
    """Return whether points lie in the balls of members, as float64 has it."""
    points, members = points.astype(np.float64), members.astype(np.float64)
    radii = np.sort(cdist(members, members), axis=1)[:, k]
    return cdist(points, members) <= radii


def by_definition(fake: np.ndarray, real: np.ndarray, k: int) -> dict[str, float]:
    in_real, in_fake = inside(fake, real, k), inside(real, fake, k)
    return {
        "precision": in_real.any(axis=1).mean(),
        "recall": in_fake.any(axis=1).mean(),
        "density": in_real.sum() / (k * len(fake)),
        "coverage": in_real.any(axis=0).mean(),
    }


def measured(fake: np.ndarray, real: np.ndarray, k: int) -> dict[str, float]:
    shares = precision_recall(fake, real, neighbourhood=k)
    found = density_coverage(fake, real, neighbourhood=k)
    return {
        "precision": shares.precision,
        "recall": shares.recall,
        "density": found.density,
        "coverage": found.coverage,
    }


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(6, 40),
    st.integers(6, 40),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([4, 7, 2048]),
    # Far from the origin, in tiny and huge units, and on a grid, where distances are equal.
    st.sampled_from(["plain", "far", "tiny", "huge", "grid"]),
)
def test_they_are_their_definitions(seed, n_fake, n_real, k, permute, block, kind):
    fake, real = 1.5 * normal(seed, n_fake, 3), normal(seed + 1, n_real, 3)
    if kind == "far":
        fake, real = (x.astype(np.float32) + np.float32(1000) for x in (fake, real))
    elif kind in ("tiny", "huge"):
        fake, real = (x * {"tiny": 1e-30, "huge": 1e30}[kind] for x in (fake, real))
    elif kind == "grid":
        fake, real = np.round(fake), np.round(real)
    expected = by_definition(fake, real, k)
    if permute:
        fake, real = fake[::-1], np.roll(real, 3, axis=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(manifold.BLOCK, "cpu", block)
        patch.setattr(manifold, "MAX_PENDING", 50)
        assert measured(fake, real, k) == pytest.approx(expected, rel=1e-12)


def test_harmonic_mean():
    fake, real = normal(0, 90, 4), 1.2 * normal(1, 70, 4)
    got = precision_recall(fake, real)
    mean = 2 / (1 / got.precision + 1 / got.recall)
    assert 0 < got.f_score < 1 and got.f_score == pytest.approx(mean, rel=1e-12)


def test_both_at_once_are_each_alone():
    fake, real = normal(0, 90, 4), 1.2 * normal(1, 70, 4)
    assert manifold_metrics(fake, real) == (
        precision_recall(fake, real),
        density_coverage(fake, real),
    )


def test_float32_alone_would_not_tell_these_apart():
    # Spread by 1e-5 about two places a unit apart: squared distances round at 1e-7 in float32.
    places = np.repeat(np.eye(2), 150, axis=0)
    real, fake = (places + 1e-5 * normal(seed, 300, 2) for seed in (0, 1))
    assert measured(fake, real, 3) == pytest.approx(by_definition(fake, real, 3), rel=1e-12)
    assert 0.3 < measured(fake, real, 3)["precision"] < 0.99


def test_copies_of_one_image_have_balls_of_no_size():
    real = np.concatenate([np.zeros((200, 4)), normal(0, 100, 4)]).astype(np.float32)
    fake = np.concatenate([np.zeros((150, 4)), 0.5 * normal(1, 50, 4)]).astype(np.float32)
    assert measured(fake, real, 3) == pytest.approx(by_definition(fake, real, 3), rel=1e-12)
    alone = measured(np.zeros((90, 4)), np.zeros((100, 4)), 5)
    assert alone == {"precision": 1, "recall": 1, "density": 20, "coverage": 1}


def test_a_collapsed_model_is_precise_and_a_wide_one_recalls():
    real = normal(0, 300, 4)
    same = precision_recall(real, real)
    assert (same.precision, same.recall, same.f_score) == (1, 1, 1)
    near = real[:1] + 0.01 * normal(1, 200, 4)
    collapsed = precision_recall(near, real)
    assert collapsed.precision == 1 and collapsed.recall < 0.1
    wide = precision_recall(4 * normal(1, 200, 4), real)
    assert wide.precision < 0.3 and wide.recall > 0.9
    apart = precision_recall(real + 100, real)
    assert (apart.precision, apart.recall, apart.f_score) == (0, 0, 0)
    assert density_coverage(near, real).coverage < 0.1


def test_density_of_the_same_distribution_is_about_1_and_coverage_what_the_paper_derives():
    # Naeem et al. 2020, Lemma 2: E coverage = 1 - (N - 1)...(N - k) / ((M + N - 1)...(M + N - k)).
    found = density_coverage(normal(0, 3000, 8), normal(1, 3000, 8))
    n, k = 3000, 5
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    assert found.density == pytest.approx(1, abs=0.05)
    assert found.coverage == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: precision_recall(x, x[:3]), r"real: shape \(3, 3\) given; .* n >= 4"),
        (lambda x: precision_recall(x[:3], x), r"fake: shape \(3, 3\) given; .* n >= 4"),
        (lambda x: density_coverage(x[:1], x[:5]), r"real: shape \(5, 3\) given; .* n >= 6"),
        (lambda x: precision_recall(x * np.inf, x), "fake: 8 of 8 rows are not finite"),
        (lambda x: precision_recall(x, x[:, :2]), "3 and 2 dimensions"),
        (lambda x: precision_recall(x, x, neighbourhood=0), "neighbourhood=0"),
        (lambda x: density_coverage(x, x, neighbourhood=-1), "neighbourhood=-1"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(MetricError, match=message) as caught:
        call(normal(0, 8, 3))
    assert "\n" not in str(caught.value)
