"""Stored pixels, 0 to 255, and the network's, 0 to 1."""

from __future__ import annotations

import numpy as np
import torch


def to_float(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Map uint8 images to float32 in [0, 1] (x / 255), any shape."""
    tensor = torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images
    if tensor.dtype != torch.uint8:
        raise ValueError(f"to_float: dtype {tensor.dtype} given; uint8 is right")
    return tensor.to(torch.float32) / 255


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Clamp float images to [0, 1] and round 255 x to the nearest integer, uint8, any shape.

    Raises ValueError where a value is NaN: it has no nearest integer.
    """
    if not images.is_floating_point():
        raise ValueError(f"to_uint8: dtype {images.dtype} given; a float type is right")
    if torch.isnan(images).any():
        raise ValueError(
            f"to_uint8: {int(torch.isnan(images).sum())} of {images.numel()} values "
            "are NaN; finite values are right"
        )
    return (images.clamp(0, 1).to(torch.float32) * 255).round().to(torch.uint8)
