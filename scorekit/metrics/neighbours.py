"""Nearest neighbours in a feature space, flips taken as equal (Song & Ermon 2020, App. C.5.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from scorekit.metrics.frechet import check_features
from scorekit.metrics.spaces import MetricError


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """For n queries their k nearest references, nearest first; all arrays are (n, k).

    ``index`` (int64) is into the references, ``distance`` (float64) Euclidean in feature space, and
    ``flipped`` (bool) says that the query's mirror image was the nearer of the two.
    """

    index: np.ndarray
    distance: np.ndarray
    flipped: np.ndarray


def nearest_neighbours(
    queries: np.ndarray, references: np.ndarray, *, k: int, mirrored: np.ndarray | None = None
) -> Neighbours:
    """Return the exact k nearest of references (N, d) to queries (n, d), 1 <= k <= N.

    ``mirrored`` (n, d) are the features of the queries' mirror images: a reference's distance is
    then the smaller of the two. Raises MetricError for other shapes, and values not finite.
    """
    from sklearn.neighbors import NearestNeighbors  # slow to import

    check_features(references, "references", minimum=1)
    if not 1 <= k <= len(references):
        raise MetricError(f"k={k}: 1 to {len(references)}, the number of references, is right")
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(references)
    found = []
    for flipped, features in ((False, queries), (True, mirrored)):
        if features is None:
            continue
        check_features(features, "queries", minimum=1)
        if features.shape != queries.shape or features.shape[1] != references.shape[1]:
            raise MetricError(
                f"queries: shape {features.shape} given beside {queries.shape} and references "
                f"{references.shape}; (n, d) of one feature space is right"
            )
        distance, index = search.kneighbors(features)
        found.append((distance, index, np.full(index.shape, flipped)))
    # The k nearest under the smaller of two distances are among the k nearest under either.
    return _nearest([np.concatenate(parts, axis=1) for parts in zip(*found, strict=True)], k)


def nearest_in_blocks(
    queries: np.ndarray,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    k: int,
    mirrored: np.ndarray | None = None,
) -> Neighbours:
    """Return the same of references that come in blocks, of which one is looked at at a time.

    A block is (features (N, d), index (N,)): ``index`` of the result is what its references are
    called there, no two the same. Raises MetricError as above, N being that of all blocks.
    """
    best, n = None, 0
    for features, index in blocks:
        near = nearest_neighbours(queries, features, k=min(k, len(features)), mirrored=mirrored)
        found = [near.distance, index[near.index], near.flipped]
        if best is not None:
            before = (best.distance, best.index, best.flipped)
            found = [np.concatenate(pair, axis=1) for pair in zip(before, found, strict=True)]
        n += len(features)
        best = _nearest(found, min(k, n))
    if best is None or not 1 <= k <= n:
        raise MetricError(f"k={k}: 1 to {n}, the number of references, is right")
    return best


def _nearest(candidates: list[np.ndarray], k: int) -> Neighbours:
    """Return the k nearest of (distance, index, flipped), each (n, m), each reference once."""
    distance, index, mirror = candidates
    order = np.argsort(distance, axis=1, kind="stable")
    distance, index, mirror = (
        np.take_along_axis(array, order, axis=1) for array in (distance, index, mirror)
    )
    first = np.array([_first_k(row, k) for row in index])
    return Neighbours(
        distance=np.take_along_axis(distance, first, axis=1).astype(np.float64),
        index=np.take_along_axis(index, first, axis=1).astype(np.int64),
        flipped=np.take_along_axis(mirror, first, axis=1),
    )


def _first_k(row: np.ndarray, k: int) -> np.ndarray:
    """Return the places of the first k distinct values of a row, in order."""
    _, places = np.unique(row, return_index=True)
    return np.sort(places)[:k]
