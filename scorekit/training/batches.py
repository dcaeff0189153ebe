"""What an image becomes before it is trained on: dequantised, flipped."""

import torch
from torch import Tensor


def augment(
    images: Tensor, *, flip: Tensor | None = None, dequantisation: Tensor | None = None
) -> Tensor:
    """Return uint8 images (B, C, H, W) as float32 in [0, 1], ready for training.

    ``flip`` (B,) bool mirrors an image left to right. ``dequantisation``, uniform noise of the
    images' shape in [0, 1], spreads each of the 256 values over its cell: (255 x + u) / 256, as
    the authors trained NCSN; NCSNv2 was trained without.
    """
    if dequantisation is None:
        x = images.to(torch.float32) / 255.0
    else:
        x = (images.to(torch.float32) + dequantisation) / 256.0
    if flip is not None:
        x = torch.where(flip.reshape(-1, 1, 1, 1), x.flip(-1), x)
    return x
