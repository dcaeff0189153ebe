"""Inception score and kernel distance, each computed by torch-fidelity.

Light to import: torch-fidelity is imported where a metric is computed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scorekit.metrics.frechet import check_features, check_one_space
from scorekit.metrics.spaces import MetricError

if TYPE_CHECKING:
    import torch


log = logging.getLogger("scorekit")


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
    check_features(fake, "fake")
    check_features(real, "real")
    check_one_space(fake, real)
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


def _tensor(array: np.ndarray) -> torch.Tensor:
    import torch

    # Always a copy: torch takes neither read-only arrays nor negative strides.
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


def _check_whole(name: str, value: int, least: int = 1) -> None:
    if value < least:
        raise MetricError(f"{name}={value}: a whole number from {least} is right")


def _checked_seed(seed: int) -> int:
    if not 0 <= seed < 2**32:
        raise MetricError(f"seed={seed}: a whole number from 0 to 2^32 - 1 is right")
    return seed
