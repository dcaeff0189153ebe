"""Metrics of samples beyond the Fréchet distance, each computed by torch-fidelity.

Light to import: torch-fidelity is imported where a metric is computed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scorekit.metrics.frechet import check_features
from scorekit.metrics.spaces import MetricError

if TYPE_CHECKING:
    import torch


log = logging.getLogger("scorekit")

#: The most bytes that one block of pairwise distances takes.
BLOCK_BYTES = 2**27


@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean and standard deviation (divisor `parts`) of a metric over parts of a sample set.

    `part_size` samples (the smallest where they differ) are in each of the `parts`: splits of the
    Inception score, random subsets of the kernel distance.
    """

    mean: float
    std: float
    parts: int
    part_size: int


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Improved precision and recall in [0, 1], and their harmonic mean."""

    precision: float
    recall: float
    f_score: float


def inception_score(logits: np.ndarray, *, splits: int = 10, seed: int = 2020) -> Score:
    """Return exp E KL(p(y|x) || p(y)), in [1, k], over `splits` parts of logits (n, k), in float64.

    Salimans et al. 2016. As torch-fidelity does by default, rows are shuffled with `seed` and cut
    into consecutive parts that differ by one row at most; so the value depends on the order of the
    rows, by about `std` / sqrt(`splits`). Raises MetricError where n < `splits`.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    _check_whole("splits", splits)
    check_features(logits, "logits", minimum=splits)
    result = isc_features_to_metric(
        _tensor(logits), splits=splits, shuffle=True, rng_seed=_checked_seed(seed)
    )
    return Score(
        mean=result["inception_score_mean"],
        std=result["inception_score_std"],
        parts=splits,
        part_size=len(logits) // splits,
    )


def kernel_distance(
    fake: np.ndarray, real: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int
) -> Score:
    """Return KID, the unbiased squared MMD with the kernel (x.y / d + 1)^3, in float64.

    Bińkowski et al. 2018: the mean over random `subsets` of both feature sets (n, d); near 0, and
    negative as often as not, for two samples of one distribution. Where a set is smaller than
    `subset_size`, subsets are of that set's size: a warning says it and `part_size` holds it (and
    `std` no longer measures what drawing other images would change). Raises MetricError for
    features that are not finite, of one dimension d, at least 2 each.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    _check_whole("subsets", subsets)
    _check_whole("subset_size", subset_size, least=2)
    _check_pair(fake, real)
    size = min(subset_size, len(fake), len(real))
    if size < subset_size:
        log.warning(
            "kernel distance: subset_size=%d reduced to %d, all of the smaller set",
            subset_size,
            size,
        )
    result = kid_features_to_metric(
        _tensor(fake),
        _tensor(real),
        kid_subsets=subsets,
        kid_subset_size=size,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=_checked_seed(seed),
        verbose=False,
    )
    return Score(
        mean=result["kernel_inception_distance_mean"],
        std=result["kernel_inception_distance_std"],
        parts=subsets,
        part_size=size,
    )


def precision_recall(
    fake: np.ndarray, real: np.ndarray, *, neighbourhood: int = 3
) -> PrecisionRecall:
    """Return the shares of fakes among the reals, and of reals among the fakes, in float64.

    Kynkäänniemi et al. 2019: a feature is among a set (n, d) where it lies within the distance of
    some member to that member's `neighbourhood`-th nearest other. Both shares depend on both n:
    compare at equal n. Distances are held a block at a time, in at most about three times
    `BLOCK_BYTES`. Raises MetricError for features that are not finite, of one dimension d, more
    than `neighbourhood` each.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    _check_whole("neighbourhood", neighbourhood)
    _check_pair(fake, real, minimum=neighbourhood + 1)
    rows = max(1, BLOCK_BYTES // (8 * max(len(fake), len(real))))
    # torch-fidelity 0.4.0 takes the generated set first, the real one second.
    result = prc_features_to_metric(
        _tensor(fake),
        _tensor(real),
        prc_neighborhood=neighbourhood,
        prc_batch_size=rows,
        save_cpu_ram=True,
        verbose=False,
    )
    return PrecisionRecall(
        precision=result["precision"], recall=result["recall"], f_score=result["f_score"]
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    import torch

    # Always a copy: torch takes neither read-only arrays nor negative strides.
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


def _check_pair(fake: np.ndarray, real: np.ndarray, minimum: int = 2) -> None:
    check_features(fake, "fake", minimum)
    check_features(real, "real", minimum)
    if fake.shape[1] != real.shape[1]:
        raise MetricError(
            f"fake and real: {fake.shape[1]} and {real.shape[1]} dimensions; both must be of one "
            "feature space"
        )


def _check_whole(name: str, value: int, least: int = 1) -> None:
    if value < least:
        raise MetricError(f"{name}={value}: a whole number from {least} is right")


def _checked_seed(seed: int) -> int:
    if not 0 <= seed < 2**32:
        raise MetricError(f"seed={seed}: a whole number from 0 to 2^32 - 1 is right")
    return seed
