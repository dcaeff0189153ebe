"""The spread and the bias of a Fréchet distance from each image's influence on it, in one pass.

With mean m and covariance S of the features x, m_r and S_r = R R of the reference, R S R =
V diag(lambda) V^T, c = x - m and z = V^T R c, the distance D moves by

    psi(x) = 2 c.(m - m_r) + c.c - sum_j z_j^2 / sqrt(lambda_j) - mean

per image (its influence function; tr (R S R)^1/2 has the derivative R (R S R)^(-1/2) R / 2), so
that its standard error is that of the mean of psi: the delta method (van der Vaart 1998, ch. 20).
The second derivative gives the bias that the distance of n images has:

    [tr S + 1/2 sum_ij var(z_i z_j) / (sqrt(lambda_i lambda_j) (sqrt lambda_i + sqrt lambda_j))] / n
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scorekit.metrics.frechet import FeatureStatistics, frechet_distance, not_negative
from scorekit.metrics.spaces import MetricError

# Rows at a time: float64 copies of 50,000 x 2048 features would take 0.8 GB.
_ROWS = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Influences:
    """The `distance` of n features, its `bias` to first order, and its influence `values` (n,)."""

    distance: float
    bias: float
    values: np.ndarray

    @property
    def standard_error(self) -> float:
        """That of the distance for other images of the same model."""
        return float(self.values.std(ddof=1) / np.sqrt(len(self.values)))


def distance_influences(features: np.ndarray, reference: FeatureStatistics) -> Influences:
    """Return what each of features (n, d) does to their Fréchet distance; equations above.

    For n well above d: MetricError unless n > d. Takes 40 d^2 bytes and 6 n d^2 operations beside
    one eigenvalue problem.
    """
    n, d = features.shape
    if n <= d:
        raise MetricError(f"features: n={n} for d={d} dimensions; influences need n > d")
    statistics = subset_statistics(features, np.arange(n))
    product = reference.root @ statistics.covariance @ reference.root
    values, vectors = np.linalg.eigh((product + product.T) / 2)
    roots = np.sqrt(not_negative(values))
    # Directions in which the reference has nothing: nothing is projected onto them either.
    kept = roots > 1e-10 * roots.max()
    roots = roots[kept]
    basis = reference.root @ vectors[:, kept]
    difference = statistics.mean - reference.mean
    influences, fourth = np.empty(n), np.zeros((len(roots), len(roots)))
    for rows, block in _blocks(features, np.arange(n)):
        centred = block - statistics.mean
        squares = (centred @ basis) ** 2
        moved = 2 * centred @ difference + np.einsum("nd,nd->n", centred, centred)
        influences[rows] = moved - squares @ (1 / roots)
        fourth += squares.T @ squares
    between = np.multiply.outer(roots, roots) * np.add.outer(roots, roots)
    # The covariances of z are lambda on the diagonal and 0 beside it.
    curvature = (fourth / n / between).sum() - roots.sum() / 2
    return Influences(
        distance=frechet_distance(statistics, reference),
        bias=float((np.trace(statistics.covariance) + curvature / 2) / n),
        values=influences - influences.mean(),
    )


def subset_statistics(features: np.ndarray, rows: np.ndarray) -> FeatureStatistics:
    """Return mean and unbiased covariance, float64, of some rows, which are read in blocks."""
    n = len(rows)
    # Any point near the mean will do to keep the digits, and one pass is enough.
    near = features[rows[:_ROWS]].mean(axis=0, dtype=np.float64)
    total = np.zeros(features.shape[1])
    products = np.zeros((features.shape[1], features.shape[1]))
    for _, block in _blocks(features, rows):
        centred = block - near
        total += centred.sum(axis=0)
        products += centred.T @ centred
    shift = total / n
    covariance = (products - n * np.outer(shift, shift)) / (n - 1)
    return FeatureStatistics(mean=near + shift, covariance=covariance, n=n)


def _blocks(features: np.ndarray, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(rows), _ROWS):
        where = slice(start, start + _ROWS)
        yield where, features[rows[where]].astype(np.float64)
