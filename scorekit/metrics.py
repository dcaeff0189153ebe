"""Fréchet distances: features to statistics to a value, and the names of spaces and metrics.

Light to import: features themselves are made in :mod:`scorekit.features`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from scorekit.files import CorruptFile, atomic_write, sha256_file

log = logging.getLogger("scorekit")

INCEPTION = "inception-v3-compat"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS = Path(__file__).parent / "weights"
#: Which of an extractor's outputs is the feature space of the distance.
FEATURE_LAYERS = {INCEPTION: "2048", "digits-cnn": "64", "patches-cnn": "64", "cifar-cnn": "96"}
#: Which of an extractor's outputs are the class logits of the Inception score.
LOGITS_LAYERS = {INCEPTION: "logits_unbiased"} | {
    name: "logits" for name in FEATURE_LAYERS if name != INCEPTION
}
#: The one output of an extractor that a user registers.
REGISTERED_LAYER = "features"
MAX_COVARIANCE_DIM = 4096


class MetricError(ValueError):
    """A feature extractor or statistic that cannot be had: one line saying what would be right."""


def default_extractor(
    dataset_name: str, channels: int, inception_weights: str | Path | None = None
) -> str:
    """Name the feature space for a data set: Inception where its weights are given, else ours.

    Without: `digits-cnn` for the data set "digits", `cifar-cnn` for "cifar10" and "cifar10-...",
    `patches-cnn` for any other. Raises MetricError where `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise MetricError(f"dataset={dataset_name}: {channels} channels; 1 or 3 are right")
    if inception_weights is not None:
        return INCEPTION
    if dataset_name == "cifar10" or dataset_name.startswith("cifar10-"):
        return "cifar-cnn"
    return "digits-cnn" if dataset_name == "digits" else "patches-cnn"


def distance_label(extractor: str) -> str:
    """Return "FID" for Inception's feature space, else "FD[<extractor>]"."""
    return "FID" if extractor == INCEPTION else f"FD[{extractor}]"


def metric_label(metric: str, extractor: str) -> str:
    """Return the metric's name, for other than Inception's features as "KID[<extractor>]"."""
    return metric if extractor == INCEPTION else f"{metric}[{extractor}]"


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

    @cached_property
    def root(self) -> np.ndarray:
        """The symmetric root of the covariance (d, d), computed at first use and kept."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(not_negative(values))) @ vectors.T


def feature_statistics(features: np.ndarray) -> FeatureStatistics:
    """Return float64 mean and unbiased covariance of features (n, d), n >= 2.

    Warns where n <= d: the covariance is then singular. Raises MetricError for n < 2, another
    number of dimensions, or values that are not finite.
    """
    check_features(features)
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


def check_features(features: np.ndarray, name: str = "features", minimum: int = 2) -> None:
    """Raise MetricError unless `features` is finite, of shape (n, d), with n >= `minimum`."""
    if features.ndim != 2 or len(features) < minimum or features.shape[1] < 1:
        raise MetricError(
            f"{name}: shape {features.shape} given; (n, d) with n >= {minimum} is right"
        )
    if bad := int((~np.isfinite(features)).any(axis=1).sum()):
        raise MetricError(f"{name}: {bad} of {len(features)} rows are not finite")


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Return |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_b^1/2 S_a S_b^1/2)^1/2), >= 0, in float64.

    The squared Fréchet (2-Wasserstein) distance of Gaussians (Dowson & Landau 1982; as "FID",
    Heusel et al. 2017), by symmetric eigenvalues alone. Symmetric but for rounding; give the
    reference as `b`, whose root is kept for the next distance to it. Raises MetricError where the
    dimensions differ or a covariance has an eigenvalue negative beyond rounding.
    """
    if a.mean.shape != b.mean.shape:
        raise MetricError(
            f"statistics: {a.mean.shape[0]} and {b.mean.shape[0]} dimensions; both "
            "must be of one feature space"
        )
    product = b.root @ a.covariance @ b.root
    overlap = np.sqrt(not_negative(np.linalg.eigvalsh((product + product.T) / 2))).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(distance - 2 * overlap))


def not_negative(eigenvalues: np.ndarray) -> np.ndarray:
    """Clip what rounding made negative (1e-6 of the largest: float32 statistics pass).

    Raises MetricError where an eigenvalue is negative beyond that.
    """
    if eigenvalues.min() < -1e-6 * max(abs(eigenvalues.max()), np.finfo(np.float64).tiny):
        raise MetricError(
            f"statistics: covariance eigenvalue {eigenvalues.min():.3g} beside "
            f"{eigenvalues.max():.3g}; none may be negative"
        )
    return eigenvalues.clip(min=0)


# --- statistics in files --------------------------------------------------------------------------


def save_statistics(path: str | Path, statistics: FeatureStatistics) -> None:
    """Write statistics atomically as .npz: mean, covariance and n."""
    atomic_write(
        path,
        lambda file: np.savez(
            file, mean=statistics.mean, covariance=statistics.covariance, n=statistics.n
        ),
    )


def load_statistics(path: str | Path, *, n: int | None = None) -> FeatureStatistics:
    """Read statistics from .npz: ours, or a layout in which FID statistics are published.

    Those are `mu` (d,) and `sigma` (d, d), and the features themselves as `pool_3` (n, d). The
    first does not hold its number of images, a condition of every distance to it: give it as `n`.
    Other arrays are ignored, and nothing is unpickled. A published file is good for FID only where
    its images were resized, and its weights are, as here, which no file says. Raises
    CorruptFile for a damaged file, other contents, and values that are no mean and covariance;
    MetricError where n is missing or another than the file's.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise CorruptFile(path, "is one array; an .npz of statistics is right")
        with file:
            names = file.files
            wanted = ("mean", "covariance", "n", "mu", "sigma", "pool_3")
            arrays = {name: file[name] for name in wanted if name in names}
    except (FileNotFoundError, IsADirectoryError, PermissionError, CorruptFile):
        raise  # says what is wrong by itself, and names the file
    except Exception as error:  # readers of archives raise nearly anything on damaged bytes
        raise CorruptFile(path, f"is no .npz of statistics ({error})") from error
    if {"mean", "covariance", "n"} <= arrays.keys():
        mean, covariance, stored = arrays["mean"], arrays["covariance"], arrays["n"]
        if stored.shape != () or stored.dtype.kind not in "iu" or stored < 2:
            raise CorruptFile(path, f"n is {stored}; a whole number from 2 is right")
        known = int(stored)
    elif {"mu", "sigma"} <= arrays.keys():
        mean, covariance, known = arrays["mu"], arrays["sigma"], None
    elif "pool_3" in arrays:
        try:
            statistics = feature_statistics(arrays["pool_3"])
        except (MetricError, TypeError) as error:
            raise CorruptFile(path, f"pool_3: {error}") from error
        mean, covariance, known = statistics.mean, statistics.covariance, statistics.n
    else:
        raise CorruptFile(
            path,
            f"holds {', '.join(names) or 'nothing'}; mean, covariance and n, mu and sigma, or "
            "pool_3 are right",
        )
    if wrong := _fault_of_statistics(mean, covariance):
        raise CorruptFile(path, wrong)
    n = known if n is None else n
    if n is None or n < 2 or known not in (None, n):
        held = "does not hold n; give the number of images" if known is None else f"holds n={known}"
        raise MetricError(f"n={n}: {path} {held}")
    return FeatureStatistics(
        mean=mean.astype(np.float64), covariance=covariance.astype(np.float64), n=n
    )


def _fault_of_statistics(mean: np.ndarray, covariance: np.ndarray) -> str:
    """Say what keeps two arrays from being a mean and a covariance; "" where nothing does."""
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        return f"mean is {mean.dtype} and covariance {covariance.dtype}; floats are right"
    if mean.ndim != 1 or len(mean) < 1 or covariance.shape != (len(mean), len(mean)):
        return f"mean is {mean.shape} and covariance {covariance.shape}; (d,) and (d, d) are right"
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        return "mean or covariance is not finite"
    if np.abs(covariance - covariance.T).max() > 1e-5 * np.abs(covariance).max():
        return "covariance is not symmetric"
    return ""


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
