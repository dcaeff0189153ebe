"""Quantiles of the distances between data points: alternatives to Technique 1's maximum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

#: The most pairs that are looked at, and the most pixels of them.
MAX_PAIRS, MAX_ELEMENTS = 2**23, 2**31
_BLOCK_ELEMENTS = 2**24


@dataclass(frozen=True, kw_only=True)
class DistanceQuantile:
    """A quantile of the distances between two data points, in units of images in [0, 1].

    ``exact`` says that all ``n_pairs`` pairs were measured, and ``low`` and ``high`` are then the
    value itself; else they bound a 95 % interval for it.
    """

    quantile: float
    value: float
    low: float
    high: float
    n_pairs: int
    exact: bool


def distance_quantiles(
    images: Tensor | np.ndarray,
    quantiles: Sequence[float],
    *,
    max_elements: int = MAX_ELEMENTS,
    seed: int = 0,
) -> list[DistanceQuantile]:
    """Return quantiles of the Euclidean distance between two different images: for sigma_1.

    Technique 1 (Song & Ermon 2020) takes the largest of these distances, which few pairs come near;
    Prop. 1 asks that pairs be within reach of each other. ``images`` is (N, ...), N >= 2, uint8 in
    [0, 255] or floating point in [0, 1]. All pairs are measured where these are no more than
    ``MAX_PAIRS``, of ``max_elements`` pixels together; else as many as that allows are drawn with
    ``seed``, independently, and the interval is that of the order statistics, whose ranks are
    binomial. Raises ValueError for fewer images, other dtypes, and quantiles outside (0, 1).
    """
    if len(images) < 2:
        raise ValueError(f"distances need at least 2 images, got {len(images)}")
    if wrong := [q for q in quantiles if not 0 < q < 1]:
        raise ValueError(f"quantile = {wrong[0]} must lie in (0, 1); Technique 1's maximum is at 1")
    floating = (
        images.is_floating_point() if isinstance(images, Tensor) else images.dtype.kind == "f"
    )
    if not (floating or images.dtype in (torch.uint8, np.uint8)):
        raise ValueError(f"images are {images.dtype}: uint8 or floating point is needed")
    n, dim = len(images), math.prod(images.shape[1:])
    most = max(2, min(MAX_PAIRS, max_elements // dim))
    exact = n * (n - 1) // 2 <= most
    if exact:
        first, second = np.triu_indices(n, 1)
    else:
        generator = np.random.Generator(np.random.Philox(key=seed))
        first = generator.integers(0, n, most)
        second = (first + generator.integers(1, n, most)) % n
    distances = np.sort(_distances(images, first, second))
    return [_quantile(distances, q, exact) for q in quantiles]


def _distances(images: Tensor | np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    block = max(1, _BLOCK_ELEMENTS // math.prod(images.shape[1:]))
    found = []
    for begin in range(0, len(first), block):
        pair = [_rows(images, index[begin : begin + block]) for index in (first, second)]
        found.append((pair[0] - pair[1]).square().sum(1, dtype=torch.float64).sqrt())
    return torch.cat(found).numpy()


def _rows(images: Tensor | np.ndarray, index: np.ndarray) -> Tensor:
    """Return chosen images, float32 (n, D), in [0, 1]."""
    if isinstance(images, Tensor):
        chosen = images[torch.from_numpy(index).to(images.device)].cpu()
    else:
        chosen = torch.from_numpy(np.asarray(images[index]))
    scale = 255 if chosen.dtype == torch.uint8 else 1
    return chosen.flatten(1).to(torch.float32) / scale


def _quantile(distances: np.ndarray, q: float, exact: bool) -> DistanceQuantile:
    n = len(distances)
    value = float(np.quantile(distances, q))
    low = high = value
    if not exact:
        spread = float(ndtri(0.975)) * math.sqrt(n * q * (1 - q))
        low = float(distances[max(0, math.floor(n * q - spread) - 1)])
        high = float(distances[min(n - 1, math.ceil(n * q + spread))])
    return DistanceQuantile(quantile=q, value=value, low=low, high=high, n_pairs=n, exact=exact)
