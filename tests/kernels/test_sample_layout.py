"""The strides by which kernels find element p of a sample, in any memory format."""

import math

import pytest
import torch

from kernels.sample_layout import sample_strides, walkable


@pytest.mark.parametrize(
    ("x", "strides"),
    [
        (torch.empty(2, 3, 4, 5), (60, 0, 0)),
        (torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last), (60, 1, 3)),
        (torch.empty(2, 3, 4, 6)[:, :, :, ::2], (72, 24, 2)),
        (torch.empty(2, 3, 4, 5)[:, :, :, 1:], None),
        (torch.empty(2, 3, 5, 4).transpose(2, 3), None),
        (torch.empty(2, 3, 4, 5)[:, :2], (60, 0, 0)),
        (torch.empty(2, 3, 4, 5)[:, ::2], (60, 40, 1)),
        (torch.empty(1, 3, 4, 5).expand(2, 3, 4, 5), (0, 0, 0)),
        (torch.empty(2, 1, 1, 5), (5, 0, 0)),
        (torch.empty(2, 6), (6, 0, 0)),
        (torch.empty(2, 6)[:, ::2], (6, 2, 1)),
        (torch.empty(6, 2).T, (1, 2, 1)),
        (torch.empty(4), (1, 0, 0)),
    ],
)
def test_strides_by_which_kernels_walk_through_samples(x, strides):
    assert sample_strides(x) == strides
    if strides is None:
        return
    batch, channel, pixel = strides
    n_pixels = math.prod(x.shape[2:])
    memory = torch.arange(1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)))
    values = memory.as_strided(x.shape, x.stride()).flatten(1) if x.ndim > 1 else memory[:, None]
    p = torch.arange(values.shape[1])
    offsets = p if strides[1:] == (0, 0) else p // n_pixels * channel + p % n_pixels * pixel
    assert torch.equal(values, batch * torch.arange(len(x))[:, None] + offsets)


def test_what_has_no_such_strides_is_copied():
    x = torch.arange(120.0).reshape(2, 3, 5, 4).transpose(2, 3)
    copy, strides = walkable(x)
    assert torch.equal(copy, x)
    assert strides == (60, 0, 0)
    assert copy.is_contiguous()
    same, strides = walkable(copy)
    assert same is copy
    assert strides == (60, 0, 0)
