"""Differences and ratios of pairs, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The mean over ``n`` pairs with its 95 % interval by Student's t, NaN for one pair.

    A ratio's is that of the logarithms, turned back. All are NaN where there is no pair.
    """

    mean: float
    low: float
    high: float
    n: int


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Return second - first over pairs."""
    return _interval([b - a for a, b in zip(first, second, strict=True)])


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Return second / first over pairs, all positive."""
    logs = _interval([math.log(b / a) for a, b in zip(first, second, strict=True)])
    return Paired(
        mean=math.exp(logs.mean), low=math.exp(logs.low), high=math.exp(logs.high), n=logs.n
    )


def comparison(
    group: str,
    quantity: str,
    sort: str,
    first: tuple[str, Sequence[float]],
    second: tuple[str, Sequence[float]],
) -> dict[str, Any]:
    """Return a record of two named sides over pairs; ``sort`` is "ratio" or "difference".

    Of the pairs alone whose values are both finite, which the record counts.
    """
    paired = paired_ratio if sort == "ratio" else paired_difference
    pairs = [
        pair for pair in zip(first[1], second[1], strict=True) if all(map(math.isfinite, pair))
    ]
    sides = [a for a, _ in pairs], [b for _, b in pairs]
    record: dict[str, Any] = {"group": group, "quantity": quantity, "sort": sort}
    record |= {"first": (first[0], sides[0]), "second": (second[0], sides[1])}
    return record | vars(paired(*sides))


def _interval(values: Sequence[float]) -> Paired:
    n, mean = len(values), fmean(values) if values else math.nan
    half = math.nan
    if n > 1:
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * stdev(values) / math.sqrt(n)
    return Paired(mean=mean, low=mean - half, high=mean + half, n=n)


def mean_and_spread(values: Iterable[float | None]) -> tuple[float, float]:
    """Return mean and sample standard deviation; NaN where there are too few or one is None."""
    numbers = [math.nan if value is None else value for value in values]
    mean = fmean(numbers) if numbers else math.nan
    return mean, stdev(numbers) if len(numbers) > 1 and math.isfinite(mean) else math.nan
