"""Random directions v with E[v v^T] = I, as functions of (seed, sample, step)."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from kernels.philox import Stream, philox_normal, philox_uniform

ProjectionKind = Literal["rademacher", "gaussian", "sphere"]
PROJECTION_KINDS: tuple[ProjectionKind, ...] = get_args(ProjectionKind)


def check_projection_kind(kind: str) -> None:
    """Raise ValueError, which lists those known, unless ``kind`` is one of them."""
    if kind not in PROJECTION_KINDS:
        raise ValueError(f"projection = {kind!r} is unknown; known: {', '.join(PROJECTION_KINDS)}")


def projections(
    kind: ProjectionKind, key: Tensor, sample_index: Tensor, step: Tensor, shape: tuple[int, ...]
) -> Tensor:
    """Return a direction for each sample, float32 (len(sample_index), *shape), stream PROJECTION.

    Elements are -1 or 1 ("rademacher") or standard normal ("gaussian"), or the direction is uniform
    on the sphere of radius sqrt(d), d elements ("sphere"). All have E[v v^T] = I, on which the
    variance-reduced objectives rest; all but the Gaussian have ||v||^2 = d. The elements of every
    kind come from the same words. Other arguments as in :func:`kernels.philox.philox_normal`;
    raises ValueError for an unknown kind and as it does.
    """
    check_projection_kind(kind)
    if kind == "rademacher":
        uniform = philox_uniform(key, sample_index, step, shape, Stream.PROJECTION)
        return torch.where(uniform < 0.5, -1.0, 1.0)
    normal = philox_normal(key, sample_index, step, shape, Stream.PROJECTION)
    if kind == "gaussian":
        return normal
    norm = normal.flatten(1).norm(dim=1).reshape(-1, *[1] * len(shape))
    return normal * (math.sqrt(math.prod(shape)) / norm)
