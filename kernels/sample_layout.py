"""Where element p of a sample lies: kernels number elements alike in every memory format."""

import math

from torch import Tensor

from kernels.dispatch import jit, tl


def sample_strides(x: Tensor) -> tuple[int, int, int] | None:
    """Return the strides of (B, C, ...) between samples, channels and pixels, or None.

    Element p of a sample is then at channel p // P and pixel p % P, P the pixels of a channel, in
    any memory format. (.., 0, 0) says that element p is p after the first. None means that no one
    stride leads through the pixels of a channel.
    """
    pixel, expected = 1, None
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if size == 1:
            continue
        if expected is None:
            pixel = stride
        elif stride != expected:
            return None
        expected = size * stride
    channels, channel = (x.shape[1], x.stride(1)) if x.ndim > 1 else (1, 1)
    flat = pixel == 1 and (channels == 1 or channel == math.prod(x.shape[2:]))
    return (x.stride(0), 0, 0) if flat else (x.stride(0), channel, pixel)


@jit
def sample_offset(p, n_pixels, channel_stride, pixel_stride, FLAT: tl.constexpr):
    """Return where elements p of a sample lie, by the strides of :func:`sample_strides`."""
    if FLAT:
        offset = p
    else:
        channel = p // n_pixels
        pixel = p - channel * n_pixels
        offset = channel.to(tl.int64) * channel_stride + pixel.to(tl.int64) * pixel_stride
    return offset


def walkable(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Return x, or a contiguous copy where kernels cannot step through it, and its strides."""
    strides = sample_strides(x)
    if strides is None:
        x = x.contiguous()
        strides = (x.stride(0), 0, 0)
    return x, strides
