"""Technique 5 of Song & Ermon (2020): exponential moving average of the parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor


def check_momentum(momentum: float) -> None:
    """Raise ValueError unless the momentum m lies in [0, 1)."""
    if not 0 <= momentum < 1:
        raise ValueError(f"ema_momentum = {momentum} must lie in [0, 1)")


@torch.no_grad()
def ema_update(
    averaged: Iterable[Tensor], parameters: Iterable[Tensor], momentum: float = 0.999
) -> None:
    """Update theta' <- m theta' + (1 - m) theta in place, after an optimiser step (Sec. 5).

    Both iterables give tensors of equal shapes and order; there is no bias correction, so the
    average starts from whatever ``averaged`` holds (the initial weights, in the paper's procedure).
    """
    check_momentum(momentum)
    # One multi-tensor kernel on a GPU already. A kernel of our own would have to be faster there,
    # which nobody has measured; on a CPU both are bound by memory (bench: ema_update).
    torch._foreach_lerp_(list(averaged), [p.detach() for p in parameters], 1 - momentum)
