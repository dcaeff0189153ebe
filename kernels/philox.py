"""Counter-based random numbers: noise as a function of (seed, stream, sample, step, pixel).

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a
128-bit counter and a 64-bit key to four 32-bit words. A sample's noise therefore does not depend
on batch size, device count or what was drawn before, and nothing has to be stored to draw it again.

Layout: an array of D elements uses Q = ceil(D / 4) counters; element p takes word ``p // Q`` of the
counter whose first entry is ``p % Q``. Words of one counter thus lie Q apart, which keeps both the
CPU's vector stores and a GPU's coalesced stores contiguous.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


class Stream(IntEnum):
    """Last counter word: keeps draws made for different purposes apart under one seed."""

    LANGEVIN = 0
    INITIAL = 1
    PERTURBATION = 2
    NOISE_LEVEL = 3
    FLIP = 4
    DEQUANTISATION = 5


def philox_key(seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the two 32-bit key words of a seed in [0, 2**64) as an int64 tensor of shape (2,)."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed = {seed} is outside [0, 2**64)")
    return torch.tensor([seed & _MASK, seed >> 32], dtype=torch.int64, device=device)


def philox_4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four output words of Philox-4x32-10.

    ``counter`` holds four broadcastable int64 tensors and ``key`` an int64 tensor (2,), all with
    values in [0, 2**32); the results are int64 with values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key[0], key[1]
    for round_ in range(10):
        if round_:
            k0 = (k0 + _WEYL[0]) & _MASK
            k1 = (k1 + _WEYL[1]) & _MASK
        # The 64-bit product wraps in int64, which leaves its bit pattern, hence both halves, exact.
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
    return c0, c1, c2, c3


def word_to_uniform(word: Tensor) -> Tensor:
    """Map 32-bit words to float32 in (0, 1): the centres of 2**24 equal cells, never 0."""
    # The topmost centre, 1 - 2**-25, rounds to 1 in float32; both ends stay finite under the map
    # to normals because log(1) = 0.
    return ((word >> 8).to(torch.float32) + 0.5) * (2.0**-24)


def words_to_normals(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Map two 32-bit words to two independent float32 standard normals (Box & Muller 1958).

    Every input gives a finite result; the largest magnitude is sqrt(2 ln 2**25) = 5.89.
    """
    radius = torch.sqrt(-2.0 * torch.log(word_to_uniform(first)))
    angle = word_to_uniform(second) * (2.0 * math.pi)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def _words(
    key: Tensor, sample_index: Tensor, step: Tensor, size: int, stream: Stream
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n_counters = (size + 3) // 4
    shape = (sample_index.shape[0], n_counters)
    position = torch.arange(n_counters, device=sample_index.device, dtype=torch.int64)
    counter = (
        position[None, :].expand(shape),
        step.to(torch.int64).expand(shape),
        sample_index[:, None].expand(shape),
        torch.full(shape, int(stream), device=sample_index.device, dtype=torch.int64),
    )
    return philox_4x32(counter, key)


def philox_normal(
    key: Tensor, sample_index: Tensor, step: Tensor, shape: tuple[int, ...], stream: Stream
) -> Tensor:
    """Return standard normal noise, float32 of shape (len(sample_index), *shape).

    ``key`` is an int64 tensor (2,) from :func:`philox_key`, ``sample_index`` an int64 tensor (B,)
    and ``step`` an int64 scalar tensor, all with values in [0, 2**32).
    """
    size = math.prod(shape)
    w0, w1, w2, w3 = _words(key, sample_index, step, size, stream)
    flat = torch.cat([*words_to_normals(w0, w1), *words_to_normals(w2, w3)], dim=1)[:, :size]
    return flat.reshape(sample_index.shape[0], *shape)


def philox_uniform(
    key: Tensor, sample_index: Tensor, step: Tensor, shape: tuple[int, ...], stream: Stream
) -> Tensor:
    """Return uniform noise in (0, 1], float32; arguments as in :func:`philox_normal`."""
    size = math.prod(shape)
    words = _words(key, sample_index, step, size, stream)
    flat = torch.cat([word_to_uniform(word) for word in words], dim=1)[:, :size]
    return flat.reshape(sample_index.shape[0], *shape)


def philox_integers(
    key: Tensor, sample_index: Tensor, step: Tensor, high: int, stream: Stream
) -> Tensor:
    """Return one integer per sample, int64 (B,), uniform over [0, high).

    ``high`` is in [1, 2**31]; the bias is below high / 2**32; other arguments as in
    :func:`philox_normal`.
    """
    if not 1 <= high <= 2**31:
        raise ValueError(f"high = {high} must lie in [1, 2**31]")
    word = _words(key, sample_index, step, 1, stream)[0][:, 0]
    return (word * high) >> 32
