"""The images of each iteration, and what they become: dequantised, flipped."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


class Batches:
    """Shuffled images, a function of (seed, iteration); every epoch has its own order.

    Batches run across the ends of epochs, so that all have one size and one compiled graph.
    """

    def __init__(self, images: np.ndarray, batch_size: int, seed: int) -> None:
        self._images, self._size, self._seed = images, batch_size, seed
        self._permutation = lru_cache(maxsize=2)(self._epoch_order)

    def __call__(self, iteration: int, begin: int, end: int) -> Tensor:
        """Return images ``begin`` to ``end`` of the batch of an iteration, as they are stored."""
        n = len(self._images)
        position = iteration * self._size + np.arange(begin, end)
        epochs = position // n
        index = np.concatenate(
            [self._permutation(int(e))[position[epochs == e] % n] for e in np.unique(epochs)]
        )
        return torch.from_numpy(self._images[index])

    def _epoch_order(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        return generator.permutation(len(self._images))


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
