"""One step of Langevin dynamics with its noise made on the fly."""

import torch
from torch import Tensor

from kernels.philox import Stream, philox_normal


def langevin_step(
    x: Tensor, score: Tensor, alpha: Tensor, key: Tensor, sample_index: Tensor, step: Tensor
) -> Tensor:
    """Return x + alpha * score + sqrt(2 alpha) * z (Song & Ermon 2020, Eq. 1), z ~ N(0, I).

    ``x`` (B, ...) is float32 or float64 and gives the result's dtype; ``score`` has the same shape
    in any floating dtype; ``alpha`` is a scalar tensor > 0; ``key``, ``sample_index`` (B,) and
    ``step`` are as in :func:`kernels.philox.philox_normal`. Scalars are tensors so that one
    compiled graph serves every noise level and step.
    """
    z = philox_normal(key, sample_index, step, tuple(x.shape[1:]), Stream.LANGEVIN)
    alpha = alpha.to(x.dtype)
    return x + alpha * score.to(x.dtype) + torch.sqrt(2 * alpha) * z.to(x.dtype)
