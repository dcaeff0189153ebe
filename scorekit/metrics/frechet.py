"""Fréchet distances: features to statistics to a value, and the names of spaces and metrics.

Light to import: features themselves are made in :mod:`scorekit.metrics.features`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from scorekit.files import CorruptFile, atomic_write
from scorekit.metrics.spaces import MetricError

log = logging.getLogger("scorekit")


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


def check_one_space(fake: np.ndarray, real: np.ndarray) -> None:
    """Raise MetricError unless features (n, d) of two sets have the same d."""
    if fake.shape[1] != real.shape[1]:
        raise MetricError(
            f"fake and real: {fake.shape[1]} and {real.shape[1]} dimensions; both must be of one "
            "feature space"
        )


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
