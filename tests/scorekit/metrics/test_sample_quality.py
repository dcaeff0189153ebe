"""Inception score and KID: closed forms; with precision and recall, torch-fidelity end to end."""

import logging
from math import comb

import numpy as np
import pytest
import torch
import torch_fidelity
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from scorekit.data.embedded import digits_split, photo_patches
from scorekit.metrics.extractors import EXTRACTORS
from scorekit.metrics.features import extract
from scorekit.metrics.frechet import feature_statistics, frechet_distance
from scorekit.metrics.manifold import precision_recall
from scorekit.metrics.sample_quality import inception_score, kernel_distance
from scorekit.metrics.spaces import WEIGHTS, MetricError


def normal(seed: int, n: int, d: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).standard_normal((n, d))


# --- Inception score ------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10])
def test_sure_and_balanced_classes_score_their_number(classes):
    logits = 100 * np.tile(np.eye(classes, dtype=np.float32), (50, 1))
    score = inception_score(logits, splits=1)
    assert score.mean == pytest.approx(classes, rel=1e-12) and score.std == 0
    assert (score.parts, score.part_size) == (1, 50 * classes)
    assert inception_score(np.ones((20, classes))).mean == pytest.approx(1, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(10, 60), st.integers(2, 8), st.floats(0.1, 9))
def test_inception_score_is_bounded_and_its_one_split_is_the_formula(seed, n, k, scale):
    logits = scale * normal(seed, n, k)
    score = inception_score(logits)
    assert 1 - 1e-9 <= score.mean <= k and score.std >= 0 and score.part_size == n // 10
    assert inception_score(logits) == score
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    formula = np.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean())
    for rows in (logits, logits[::-1]):
        assert inception_score(rows, splits=1).mean == pytest.approx(formula, rel=1e-9)


# --- kernel distance ------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "sd"), [(0, 1), (1, 1), (-0.5, 2), (2, 0.3)])
def test_kernel_distance_of_one_dimensional_gaussians_in_closed_form(mean, sd):
    # (xy + 1)^3 expands, so that MMD^2 is the sum of C(3, j) (E x^j - E y^j)^2.
    moments = (mean, mean**2 + sd**2, mean**3 + 3 * mean * sd**2)
    closed = sum(
        comb(3, j) * (m - s) ** 2 for j, m, s in zip((1, 2, 3), moments, (0, 1, 0), strict=True)
    )
    fake, real = mean + sd * normal(0, 20_000, 1), normal(1, 20_000, 1)
    got = kernel_distance(fake, real, subsets=40, subset_size=500, seed=0)
    assert got.mean == pytest.approx(closed, abs=4 * got.std / np.sqrt(40))


def test_kernel_distance_of_two_points_is_exact():
    x, y = np.array([1.0, 2.0, 0.0]), np.array([0.0, 1.0, 3.0])
    k = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    got = kernel_distance(np.tile(x, (30, 1)), np.tile(y, (40, 1)), subset_size=20, seed=0)
    assert got.mean == pytest.approx(k(x, x) + k(y, y) - 2 * k(x, y), rel=1e-12)
    assert got.std == pytest.approx(0, abs=1e-9)


def test_kernel_distance_tells_one_distribution_from_two():
    fake, real = normal(0, 600, 8), normal(1, 500, 8)
    near = kernel_distance(fake, real, subset_size=200, seed=3)
    far = kernel_distance(fake + 1, real, subset_size=200, seed=3)
    assert abs(near.mean) < near.std < 0.1 * far.mean
    assert kernel_distance(fake, real, subset_size=200, seed=3) == near
    assert kernel_distance(fake, real, subset_size=200, seed=4) != near


def test_a_subset_larger_than_the_set_is_said_to_be_smaller(caplog):
    fake, real = normal(0, 60, 4), normal(1, 50, 4)
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        assert kernel_distance(fake, real, subsets=5, subset_size=50, seed=0).part_size == 50
        assert caplog.text == ""
        got = kernel_distance(fake, real, subsets=5, seed=0)
    assert got.part_size == 50 and got.parts == 5
    assert "subset_size=1000 reduced to 50, all of the smaller set" in caplog.text
    whole = kernel_distance(fake[:50], real, subsets=2, subset_size=50, seed=0)
    turned = kernel_distance(fake[:50][::-1], real, subsets=2, subset_size=50, seed=0)
    assert turned.mean == pytest.approx(whole.mean, rel=1e-9)


# --- side by side with torch-fidelity -------------------------------------------------------------


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = torch.from_numpy(np.array(images))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def ours(fake, real, extractor: str, subset_size: int, **arguments) -> dict[str, float]:
    a, b = (extract(images, extractor, **arguments) for images in (fake, real))
    score = inception_score(a.logits)
    kernel = kernel_distance(a.features, b.features, subsets=20, subset_size=subset_size, seed=2020)
    shares = precision_recall(a.features, b.features)
    statistics = [feature_statistics(each.features) for each in (a, b)]
    return {
        "inception_score_mean": score.mean,
        "inception_score_std": score.std,
        "kernel_inception_distance_mean": kernel.mean,
        "kernel_inception_distance_std": kernel.std,
        "precision": shares.precision,
        "recall": shares.recall,
        "f_score": shares.f_score,
        "frechet_inception_distance": frechet_distance(*statistics),
    }


def theirs(fake, real, extractor: str, subset_size: int, **arguments) -> dict[str, float]:
    return torch_fidelity.calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        cuda=False,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=20,
        kid_subset_size=subset_size,
        feature_extractor=extractor,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        **arguments,
    )


class InFloat64:
    """Gives float32 outputs as float64, so that torch-fidelity computes its metrics in it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(output.double() for output in super().forward(x))


for name, extractor in (*EXTRACTORS.items(), ("inception-v3-compat", FeatureExtractorInceptionV3)):
    torch_fidelity.register_feature_extractor(
        f"{name}-float64", type(f"{extractor.__name__}Float64", (InFloat64, extractor), {})
    )


@pytest.mark.parametrize(
    ("name", "load"), [("digits-cnn", digits_split), ("patches-cnn", photo_patches)]
)
def test_embedded_spaces_measured_by_torch_fidelity_end_to_end(name, load):
    images = load("test")[0]
    fake, real = images[:160], images[160:360]
    weights = {"feature_extractor_weights_path": str(WEIGHTS / f"{name}.safetensors")}
    expected = theirs(fake, real, f"{name}-float64", 100, **weights)
    assert ours(fake, real, name, 100) == pytest.approx(expected, rel=1e-6)
    # As it comes, torch-fidelity sums kernels of these features in float32.
    single = theirs(fake, real, name, 100)
    assert single == pytest.approx(expected, rel=1e-4)
    others = {key: value for key, value in single.items() if "kernel" not in key}
    assert others == pytest.approx({key: expected[key] for key in others}, rel=1e-6)


@pytest.mark.slow
def test_inception_measured_by_torch_fidelity_end_to_end(inception_weights):
    images = photo_patches("test")[0][::4]
    fake, real = images[:11], images[11:23]
    weights = {"feature_extractor_weights_path": str(inception_weights)}
    expected = theirs(fake, real, "inception-v3-compat-float64", 10, **weights)
    got = ours(fake, real, "inception-v3-compat", 10, weights_path=inception_weights)
    # n < d leaves some 2,000 eigenvalues that are zero but for rounding: their roots add up.
    name = "frechet_inception_distance"
    assert got.pop(name) == pytest.approx(expected.pop(name), rel=1e-4)
    assert got == pytest.approx(expected, rel=1e-6)


# --- errors ---------------------------------------------------------------------------------------

GOOD = normal(0, 8, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inception_score(GOOD), r"logits: shape \(8, 3\) given; \(n, d\) with n >= 10"),
        (lambda: inception_score(GOOD, splits=0), "splits=0: a whole number from 1"),
        (lambda: inception_score(GOOD, splits=2, seed=-1), "seed=-1: a whole number from 0 to"),
        (lambda: inception_score(np.full((8, 3), np.nan), splits=2), "logits: 8 of 8 rows are not"),
        (lambda: kernel_distance(GOOD, GOOD[0], seed=0), r"real: shape \(3,\)"),
        (lambda: kernel_distance(GOOD, GOOD[:, :2], seed=0), "3 and 2 dimensions"),
        (lambda: kernel_distance(GOOD, GOOD, subsets=0, seed=0), "subsets=0"),
        (lambda: kernel_distance(GOOD, GOOD, subset_size=1, seed=0), "subset_size=1: .* from 2"),
        (lambda: kernel_distance(GOOD, GOOD, seed=2**32), "seed=4294967296"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(MetricError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
