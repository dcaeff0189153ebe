"""Fréchet distances: features to statistics to a value, and the names of feature spaces.

Light to import: features themselves are made in :mod:`scorekit.features`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scorekit.files import sha256_file

log = logging.getLogger("scorekit")

INCEPTION = "inception-v3-compat"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS = Path(__file__).parent / "weights"
#: Which of an extractor's outputs is the feature space of the distance.
FEATURE_LAYERS = {INCEPTION: "2048", "digits-cnn": "64", "patches-cnn": "64"}
#: The one output of an extractor that a user registers.
REGISTERED_LAYER = "features"
MAX_COVARIANCE_DIM = 4096


class MetricError(ValueError):
    """A feature extractor or statistic that cannot be had: one line saying what would be right."""


def default_extractor(
    dataset_name: str, channels: int, inception_weights: str | Path | None = None
) -> str:
    """Name the feature space for a data set: Inception where its weights are given, else ours.

    Without: `digits-cnn` for the data set "digits", `patches-cnn` for any other. Raises
    MetricError where `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise MetricError(f"dataset={dataset_name}: {channels} channels; 1 or 3 are right")
    if inception_weights is not None:
        return INCEPTION
    return "digits-cnn" if dataset_name == "digits" else "patches-cnn"


def distance_label(extractor: str) -> str:
    """Return "FID" for Inception's feature space, else "FD[<extractor>]"."""
    return "FID" if extractor == INCEPTION else f"FD[{extractor}]"


def feature_dimension(extractor: str) -> int | None:
    """Return d of an extractor's features, or None for a user's own, which is known when it ran."""
    layer = FEATURE_LAYERS.get(extractor, REGISTERED_LAYER)
    return int(layer) if layer.isdigit() else None


def extractor_digest(extractor: str, weights_path: str | Path | None = None) -> str:
    """Return the SHA-256 of the weights behind `extractor`: the key for cached features.

    Raises MetricError where there is no one weights file (a user's own extractor without a path).
    """
    shipped = WEIGHTS / f"{extractor}.safetensors"
    if weights_path is None and extractor in FEATURE_LAYERS and shipped.exists():
        weights_path = shipped
    if weights_path is None or not Path(weights_path).is_file():
        raise MetricError(f"extractor={extractor}: has no weights file to identify it by")
    return sha256_file(weights_path)


# --- statistics and distance ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureStatistics:
    """The Gaussian fitted to n features: float64 mean (d,) and unbiased covariance (d, d)."""

    mean: np.ndarray
    covariance: np.ndarray
    n: int


def feature_statistics(features: np.ndarray) -> FeatureStatistics:
    """Return float64 mean and unbiased covariance of features (n, d), n >= 2.

    Warns where n <= d: the covariance is then singular. Raises MetricError for n < 2, another
    number of dimensions, or values that are not finite.
    """
    if features.ndim != 2 or len(features) < 2 or features.shape[1] < 1:
        raise MetricError(f"features: shape {features.shape} given; (n, d) with n >= 2 is right")
    if bad := int((~np.isfinite(features)).any(axis=1).sum()):
        raise MetricError(f"features: {bad} of {len(features)} rows are not finite")
    n, d = features.shape
    if n <= d:
        log.warning(
            "features: n=%d samples for d=%d dimensions: the covariance is singular, the "
            "distance biased; use more than %d samples",
            n,
            d,
            d,
        )
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((d, d))
    for start in range(0, n, 4096):  # float64 copies of 50,000 x 2048 features would be 0.8 GB
        centred = features[start : start + 4096].astype(np.float64) - mean
        covariance += centred.T @ centred
    return FeatureStatistics(mean=mean, covariance=covariance / (n - 1), n=n)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Return |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2), >= 0, in float64.

    The squared Fréchet (2-Wasserstein) distance of Gaussians (Dowson & Landau 1982; as "FID",
    Heusel et al. 2017), by symmetric eigenvalues alone. Raises MetricError where the dimensions
    differ or a covariance has an eigenvalue negative beyond rounding.
    """
    if a.mean.shape != b.mean.shape:
        raise MetricError(
            f"statistics: {a.mean.shape[0]} and {b.mean.shape[0]} dimensions; both "
            "must be of one feature space"
        )
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(_not_negative(values))) @ vectors.T
    product = root @ b.covariance @ root
    overlap = np.sqrt(_not_negative(np.linalg.eigvalsh((product + product.T) / 2))).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(distance - 2 * overlap))


def _not_negative(eigenvalues: np.ndarray) -> np.ndarray:
    """Clip what rounding made negative (1e-6 of the largest: float32 statistics pass)."""
    if eigenvalues.min() < -1e-6 * max(abs(eigenvalues.max()), np.finfo(np.float64).tiny):
        raise MetricError(
            f"statistics: covariance eigenvalue {eigenvalues.min():.3g} beside "
            f"{eigenvalues.max():.3g}; none may be negative"
        )
    return eigenvalues.clip(min=0)


# --- reference rows -------------------------------------------------------------------------------


def pixel_gaussian_samples(images: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Draw n images from the Gaussian with the mean and full covariance of the pixels of `images`.

    uint8 (N, C, H, W), N >= 2, to uint8 (n, C, H, W), clamped and rounded; deterministic
    (Philox). Raises MetricError for other input.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) < 2 or n < 1:
        raise MetricError(
            f"images: {images.dtype} {images.shape}, n={n} given; uint8 (N, C, H, W) "
            "with N >= 2, and n >= 1, are right"
        )
    random = np.random.Generator(np.random.Philox(seed))
    flat, dim = images.reshape(len(images), -1), math.prod(images.shape[1:])
    if dim <= MAX_COVARIANCE_DIM:
        mean = flat.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((dim, dim))
        for start in range(0, len(flat), 4096):
            centred = flat[start : start + 4096] - mean
            covariance += centred.T @ centred
        values, vectors = np.linalg.eigh(covariance / (len(flat) - 1))
        # The symmetric root is unique; eigenvectors' signs differ between LAPACKs.
        root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    else:
        # The same Gaussian without a D x D matrix: weights z over the centred images.
        mean = flat.mean(axis=0, dtype=np.float64)
        root = (flat.astype(np.float32) - mean.astype(np.float32)) / math.sqrt(len(flat) - 1)
    samples = np.empty((n, dim), dtype=np.uint8)
    for start in range(0, n, 1024):
        z = random.standard_normal((min(1024, n - start), len(root)))
        pixels = z.astype(root.dtype) @ root + mean
        samples[start : start + len(z)] = np.rint(pixels.clip(0, 255))
    return samples.reshape(n, *images.shape[1:])


def uniform_noise_samples(shape: tuple[int, int, int], n: int, seed: int) -> np.ndarray:
    """Draw n images of independent uniform pixels 0..255: uint8 (n, *shape), shape (C, H, W)."""
    random = np.random.Generator(np.random.Philox(seed))
    return random.integers(0, 256, size=(n, *shape), dtype=np.uint8)
