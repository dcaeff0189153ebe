"""Counter-based random numbers: noise as a function of (seed, stream, sample, step, pixel).

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a
128-bit counter and a 64-bit key to four 32-bit words. A sample's noise therefore does not depend
on batch size, device count or what was drawn before, and nothing has to be stored to draw it again.

Layout: an array of D elements uses Q = ceil(D / 4) counters; element p takes word ``p // Q`` of the
counter whose first entry is ``p % Q``. Words of one counter thus lie Q apart, which keeps both the
CPU's vector stores and a GPU's coalesced stores contiguous.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.dispatch import Impl, constexpr, jit, tl, use_triton

if TYPE_CHECKING:
    from kernels.offline import KernelCase

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

# Near-minimax polynomials, of our own fitting: (ln(1 + m) - m) / m**2 on [sqrt(1/2), sqrt(2)) - 1,
# relative error of the logarithm 1.4e-8; sin(pi t) / (t (1 - t**2)) and cos(pi t) / (1 - 4 t**2) in
# t**2 on [-1, 1], absolute error of sine and cosine 1.3e-9 and 1.2e-8. The factors taken out are
# the zeros at 1 and 1/2, which are therefore exact.
LOG1P = (
    *(-0.499999976, 0.3333333, -0.250007812, 0.200012345, -0.166266456),
    *(0.14204856, -0.131275557, 0.127226728, -0.076736415),
)
SIN = (3.141592635, -2.026119454, 0.5240371663, -0.07519218951, 0.006867877014, -0.000389795634)
COS = (0.9999999884, -0.9348011614, 0.3194908039, -0.05719912517, 0.006242007809, -0.0003991841824)
SQRT_HALF_BITS = 0x3F3504F3  # sqrt(1/2) as float32
TWO_LN_2 = 2 * math.log(2)

_M0, _M1 = constexpr(_MULTIPLIERS[0]), constexpr(_MULTIPLIERS[1])
_W0, _W1 = constexpr(_WEYL[0]), constexpr(_WEYL[1])
_LOG1P, _SIN, _COS = constexpr(LOG1P), constexpr(SIN), constexpr(COS)
_SQRT_HALF_BITS, _TWO_LN_2 = constexpr(SQRT_HALF_BITS), constexpr(TWO_LN_2)

#: Triton types of the arguments by which every kernel that makes noise finds its counters.
NOISE_SIGNATURE = {
    **dict.fromkeys(("key_ptr", "index_ptr", "step_ptr"), "*i64"),
    **dict.fromkeys(("size", "n_counters", "n_blocks"), "i32"),
}
#: Elements per sample beyond which kernels' 32-bit offsets do not reach.
MAX_SIZE = 2**31 - 2**12


class Stream(IntEnum):
    """Last counter word: keeps draws made for different purposes apart under one seed."""

    LANGEVIN = 0
    INITIAL = 1
    PERTURBATION = 2
    NOISE_LEVEL = 3
    FLIP = 4
    DEQUANTISATION = 5
    INPAINTING = 6
    PROJECTION = 7


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
        # c1 and c3 keep the products' upper halves along; one mask after the xor removes them.
        c0, c2 = ((p1 >> 32) ^ (c1 ^ k0)) & _MASK, ((p0 >> 32) ^ (c3 ^ k1)) & _MASK
        c1, c3 = p1, p0
    return c0, c1 & _MASK, c2, c3 & _MASK


def word_to_uniform(word: Tensor) -> Tensor:
    """Map 32-bit words to float32 in (0, 1): the centres of 2**24 equal cells, never 0."""
    # The topmost centre, 1 - 2**-25, rounds to 1 in float32; both ends stay finite under the map
    # to normals because log(1) = 0.
    return ((word >> 8).to(torch.float32) + 0.5) * (2.0**-24)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    result = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result


def words_to_normals(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Map two 32-bit words to two independent float32 standard normals (Box & Muller 1958).

    sqrt(-2 ln u) (cos, sin)(2 pi v) with u and v the centres of 2**24 equal cells of (0, 1). Every
    input gives a finite result; the largest magnitude is sqrt(2 ln 2**25) = 5.89. Logarithm, cosine
    and sine are polynomials in float32 with an absolute error below 2e-6 in the result, so that
    every device computes the same numbers up to the rounding of fused multiply-adds, and no library
    call interrupts a compiled loop.
    """
    # 2**24 u = 2**e (1 + m), 1 + m in [sqrt(1/2), sqrt(2)): then -ln u = (24 - e) ln 2 - ln(1 + m).
    bits = ((first >> 8).to(torch.float32) + 0.5).view(torch.int32) - SQRT_HALF_BITS
    m = ((bits & 0x7FFFFF) + SQRT_HALF_BITS).view(torch.float32) - 1.0
    log1p = m + (m * m) * _polynomial(LOG1P, m)
    # Never negative: u <= 1, so e = 24 comes with m <= 0.
    radius = torch.sqrt((24 - (bits >> 23)).to(torch.float32) * TWO_LN_2 - 2.0 * log1p)
    # The angle is pi (t + 1) with t in (-1, 1) exact; cos(pi (t + 1)) = -cos(pi t), as for sin.
    t = ((second >> 8).to(torch.float32) + (0.5 - 2.0**23)) * 2.0**-23
    square = t * t
    cos = (4.0 * square - 1.0) * _polynomial(COS, square)
    sin = ((square - 1.0) * t) * _polynomial(SIN, square)
    return radius * cos, radius * sin


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


@jit
def philox_4x32_block(c0, c1, c2, c3, k0, k1):
    """:func:`philox_4x32` in a kernel: uint32 words in, four uint32 words out."""
    for _ in tl.static_range(10):
        high0, high1 = tl.umulhi(c0, _M0), tl.umulhi(c2, _M1)
        low0, low1 = c0 * _M0, c2 * _M1
        c0, c2 = high1 ^ c1 ^ k0, high0 ^ c3 ^ k1
        c1, c3 = low1, low0
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1, c2, c3


@jit
def word_to_uniform_block(word):
    """:func:`word_to_uniform` in a kernel."""
    return ((word >> 8).to(tl.float32) + 0.5) * (2.0**-24)


@jit
def _polynomial_block(x, COEFFICIENTS: tl.constexpr, DEGREE: tl.constexpr):
    result = tl.full(x.shape, COEFFICIENTS[DEGREE], tl.float32)
    for i in tl.static_range(1, DEGREE + 1):
        result = result * x + COEFFICIENTS[DEGREE - i]
    return result


@jit
def words_to_normals_block(first, second):
    """:func:`words_to_normals` in a kernel, operation by operation."""
    bits = ((first >> 8).to(tl.float32) + 0.5).to(tl.int32, bitcast=True) - _SQRT_HALF_BITS
    m = ((bits & 0x7FFFFF) + _SQRT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    log1p = m + (m * m) * _polynomial_block(m, _LOG1P, 8)
    radius = tl.sqrt_rn((24 - (bits >> 23)).to(tl.float32) * _TWO_LN_2 - 2.0 * log1p)
    t = ((second >> 8).to(tl.float32) + (0.5 - 2.0**23)) * (2.0**-23)
    square = t * t
    cos = (4.0 * square - 1.0) * _polynomial_block(square, _COS, 5)
    sin = ((square - 1.0) * t) * _polynomial_block(square, _SIN, 5)
    return radius * cos, radius * sin


@jit
def words_at(key_ptr, index_ptr, step_ptr, sample, q, STREAM: tl.constexpr):
    """Return the four words of counters ``q`` (int32) of one sample of the batch."""
    k0, k1 = tl.load(key_ptr).to(tl.uint32), tl.load(key_ptr + 1).to(tl.uint32)
    index = tl.load(index_ptr + sample).to(tl.uint32)
    step = tl.load(step_ptr).to(tl.uint32)
    stream = tl.full((), STREAM, tl.uint32)
    return philox_4x32_block(q.to(tl.uint32), step, index, stream, k0, k1)


@jit
def normals_at(key_ptr, index_ptr, step_ptr, sample, q, STREAM: tl.constexpr):
    """Return elements q, Q + q, 2 Q + q and 3 Q + q of one sample's :func:`philox_normal`."""
    w0, w1, w2, w3 = words_at(key_ptr, index_ptr, step_ptr, sample, q, STREAM)
    z0, z1 = words_to_normals_block(w0, w1)
    z2, z3 = words_to_normals_block(w2, w3)
    return z0, z1, z2, z3


@jit
def _philox_kernel(
    out_ptr,
    key_ptr,
    index_ptr,
    step_ptr,
    size,
    n_counters,
    n_blocks,
    STREAM: tl.constexpr,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = (tl.program_id(0) // n_blocks).to(tl.int64)
    q = (tl.program_id(0) % n_blocks) * BLOCK + tl.arange(0, BLOCK)
    if NORMAL:
        values = normals_at(key_ptr, index_ptr, step_ptr, sample, q, STREAM)
    else:
        w0, w1, w2, w3 = words_at(key_ptr, index_ptr, step_ptr, sample, q, STREAM)
        values = (
            word_to_uniform_block(w0),
            word_to_uniform_block(w1),
            word_to_uniform_block(w2),
            word_to_uniform_block(w3),
        )
    out_ptr += sample * size
    for j in tl.static_range(4):
        p = j * n_counters + q
        tl.store(out_ptr + p, values[j], mask=(q < n_counters) & (p < size))


def counters_per_warp(n_bytes: int, *, hip: bool) -> int:
    """Return how many counters a warp takes so that elements of n_bytes move 16 bytes per lane."""
    # CUDA's 32 lanes take 8 each for any width; AMD's 64 take 4, and 8 of two bytes.
    return 512 if hip and n_bytes == 2 else 256


def noise_launch(size: int, n_bytes: int = 4) -> tuple[int, int, dict[str, int]]:
    """Return Q, the programs per sample, and block and warps of a kernel of ``size`` elements.

    A block is the largest of 1024, 512 and 256 counters that leaves none of its lanes idle, or the
    smallest possible.
    """
    n_counters = (size + 3) // 4
    warp = counters_per_warp(n_bytes, hip=torch.version.hip is not None)
    block = next((b for b in (1024, 512) if n_counters % b == 0), warp)
    return n_counters, -(-n_counters // block), {"BLOCK": block, "num_warps": block // warp}


def check_counters(key: Tensor, sample_index: Tensor, step: Tensor) -> None:
    """Raise ValueError unless the shapes are those of :func:`philox_normal`."""
    if key.shape != (2,):
        raise ValueError(f"key has shape {tuple(key.shape)}; (2,), as of philox_key, is needed")
    if sample_index.ndim != 1:
        raise ValueError(f"sample_index has shape {tuple(sample_index.shape)}; (B,) is needed")
    if step.ndim != 0:
        raise ValueError(f"step has shape {tuple(step.shape)}; a scalar tensor is needed")


def philox_triton(
    key: Tensor,
    sample_index: Tensor,
    step: Tensor,
    shape: Sequence[int],
    stream: int,
    *,
    normal: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Launch the kernel of :func:`philox_normal` or :func:`philox_uniform`.

    ``out``, contiguous float32 of the result's shape, is written to where given.
    """
    n_samples, size = sample_index.shape[0], math.prod(shape)
    if out is None:
        out = torch.empty((n_samples, *shape), dtype=torch.float32, device=key.device)
    if out.numel():
        n_counters, n_blocks, meta = noise_launch(size)
        with torch.cuda.device_of(out):
            _philox_kernel[(n_samples * n_blocks,)](
                *(out, key.contiguous(), sample_index.contiguous(), step),
                *(size, n_counters, n_blocks),
                STREAM=int(stream),
                NORMAL=normal,
                **meta,
            )
    return out


@torch.library.custom_op("scorekit::philox", mutates_args=())
def _philox_op(
    key: Tensor, sample_index: Tensor, step: Tensor, shape: Sequence[int], stream: int, normal: bool
) -> Tensor:
    return philox_triton(key, sample_index, step, shape, stream, normal=normal)


@_philox_op.register_fake
def _(key, sample_index, step, shape, stream, normal):
    return sample_index.new_empty((sample_index.shape[0], *shape), dtype=torch.float32)


def too_large(shape: Sequence[int]) -> str | None:
    """Return why kernels that make noise do not take samples of this shape, or None."""
    size = math.prod(shape)
    return f"a sample holds {size} elements, over {MAX_SIZE}" if size > MAX_SIZE else None


def philox_normal_reference(
    key: Tensor, sample_index: Tensor, step: Tensor, shape: tuple[int, ...], stream: Stream
) -> Tensor:
    """:func:`philox_normal` in plain torch."""
    size = math.prod(shape)
    w0, w1, w2, w3 = _words(key, sample_index, step, size, stream)
    flat = torch.cat([*words_to_normals(w0, w1), *words_to_normals(w2, w3)], dim=1)[:, :size]
    return flat.reshape(sample_index.shape[0], *shape)


def philox_normal(
    key: Tensor,
    sample_index: Tensor,
    step: Tensor,
    shape: tuple[int, ...],
    stream: Stream,
    *,
    impl: Impl = "auto",
) -> Tensor:
    """Return standard normal noise, float32 of shape (len(sample_index), *shape).

    ``key`` is an int64 tensor (2,) from :func:`philox_key`, ``sample_index`` an int64 tensor (B,)
    and ``step`` an int64 scalar tensor, all with values in [0, 2**32). Kernel and plain torch agree
    within 2e-6. Raises ValueError for other shapes and as :func:`kernels.dispatch.use_triton` does.
    """
    check_counters(key, sample_index, step)
    unsupported = too_large(shape)
    if use_triton("philox_normal", impl, key, sample_index, step, unsupported=unsupported):
        return _philox_op(key, sample_index, step, shape, int(stream), True)
    return philox_normal_reference(key, sample_index, step, shape, stream)


def philox_uniform_reference(
    key: Tensor, sample_index: Tensor, step: Tensor, shape: tuple[int, ...], stream: Stream
) -> Tensor:
    """:func:`philox_uniform` in plain torch."""
    size = math.prod(shape)
    words = _words(key, sample_index, step, size, stream)
    flat = torch.cat([word_to_uniform(word) for word in words], dim=1)[:, :size]
    return flat.reshape(sample_index.shape[0], *shape)


def philox_uniform(
    key: Tensor,
    sample_index: Tensor,
    step: Tensor,
    shape: tuple[int, ...],
    stream: Stream,
    *,
    impl: Impl = "auto",
) -> Tensor:
    """Return uniform noise in (0, 1], float32; arguments and errors as in :func:`philox_normal`.

    Kernel and plain torch agree to the last bit.
    """
    check_counters(key, sample_index, step)
    unsupported = too_large(shape)
    if use_triton("philox_uniform", impl, key, sample_index, step, unsupported=unsupported):
        return _philox_op(key, sample_index, step, shape, int(stream), False)
    return philox_uniform_reference(key, sample_index, step, shape, stream)


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


def kernel_cases() -> list["KernelCase"]:
    """Return the kernel's specialisations for :mod:`kernels.offline`."""
    from kernels.offline import KernelCase

    signature = {
        "out_ptr": "*fp32",
        **NOISE_SIGNATURE,
        **dict.fromkeys(("STREAM", "NORMAL", "BLOCK"), "constexpr"),
    }
    return [
        KernelCase(
            name=f"philox_{'normal' if normal else 'uniform'}[{block}]",
            kernel=_philox_kernel,
            signature=signature,
            constants={"STREAM": 0, "NORMAL": normal, "BLOCK": block},
            divisible_by_16=("out_ptr", "size", "n_counters"),
            memory_bound=False,
            num_warps=block // 256,
        )
        for normal in (False, True)
        for block in (256, 1024)
    ]
