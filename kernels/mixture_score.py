"""The score of a data set blurred with Gaussian noise, exactly, in memory independent of its size.

The empirical distribution after perturbation, p(x) = 1/N sum_i N(x; x_i, sigma^2 I), is what a
score network with noise level sigma is trained on (Song & Ermon 2020, Sec. 3.1 and Fig. 2).
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.dispatch import Impl, jit, tl, use_triton

if TYPE_CHECKING:
    from kernels.offline import KernelCase

#: Queries and data points of one tile, and the dimensions read at a time for distances and sums.
BLOCKS = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_D": 8, "BLOCK_K": 32}
#: With 4, Triton 3.8 spills registers on sm_90.
_NUM_WARPS = 8
#: Weights relative to the largest so far that leave no trace in a float64 sum of 1e20 such points.
_NEGLIGIBLE = 2.0**-120
_KERNEL_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


def mixture_score(
    x: Tensor,
    data: Tensor,
    sigma: Tensor | float,
    *,
    data_block: int = 256,
    impl: Impl = "auto",
) -> Tensor:
    """Return the score at x of data under Gaussian noise of standard deviation sigma.

    grad log p(x) = (sum_i w_i x_i - x) / sigma^2, w = softmax_i(-||x - x_i||^2 / (2 sigma^2)).
    ``x`` (B, ...) is float32 or float64 and gives the result's shape and dtype. ``data`` (N, ...),
    N >= 1, holds the x_i in a floating dtype or as uint8, which stands for value / 255; it is
    converted to ``x``'s dtype block by block. ``sigma`` > 0 is a number, a scalar tensor or (B,).
    The sum runs over the data in one pass (online softmax: Milakov & Gimelshein 2018) in memory
    O(B (data_block + D) + data_block D); the kernel, for float32 ``x``, has tiles of its own and
    wants ``data`` contiguous, or copies it.

    Weights hang on differences of squared distances over 2 sigma^2, 1e7 and more at sigma = 0.01:
    the torch path works in float64 around a mean data point, the kernel by direct differences with
    float64 sums. Not differentiable. Raises ValueError for other shapes and dtypes, for sigma <= 0
    given as a number, for arguments that require a gradient while gradients are on, and as
    :func:`kernels.dispatch.use_triton`.
    """
    precision = _check(x, data, sigma, data_block)
    unsupported = None
    if x.dtype != torch.float32:
        unsupported = f"x is {x.dtype}, its kernel computes in float32"
    elif data.dtype not in _KERNEL_DTYPES:
        unsupported = f"data is {data.dtype}, its kernel reads {_names(_KERNEL_DTYPES)}"
    if use_triton("mixture_score", impl, x, data, precision, unsupported=unsupported):
        flat = _mixture_score(x.flatten(1), data.flatten(1), precision)
    else:
        flat = _blockwise(x.flatten(1), data, precision, data_block)
    return flat.reshape(x.shape)


def mixture_score_reference(x: Tensor, data: Tensor, sigma: Tensor | float) -> Tensor:
    """Return the same by the formula in ``x``'s dtype, from all (B, N) distances at once."""
    rows = _values(data, x)
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))[:, None]
    flat = x.flatten(1)
    squared = torch.stack([(row - rows).square().sum(1) for row in flat])
    weights = torch.softmax(-squared / (2 * sigma**2), dim=1)
    return ((weights @ rows - flat) / sigma**2).reshape(x.shape)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _check(x: Tensor, data: Tensor, sigma: Tensor | float, data_block: int) -> Tensor:
    """Return 1 / sigma^2 as float64 (B,); raise ValueError for arguments that do not fit."""
    if x.ndim < 2 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; float32 or float64 (B, ...) is needed"
        )
    if data.ndim != x.ndim or data.shape[1:] != x.shape[1:] or len(data) == 0:
        expected = ", ".join(("N", *map(str, x.shape[1:])))
        raise ValueError(f"data has shape {tuple(data.shape)}; ({expected}), N >= 1, is needed")
    if not (data.is_floating_point() or data.dtype == torch.uint8):
        raise ValueError(f"data is {data.dtype}; a floating dtype or uint8 is needed")
    if data_block < 1:
        raise ValueError(f"data_block = {data_block} must be at least 1")
    if not isinstance(sigma, Tensor):
        if not (sigma > 0 and math.isfinite(sigma)):
            raise ValueError(f"sigma = {sigma} must be positive and finite")
        sigma = torch.full((), sigma, dtype=torch.float64, device=x.device)
    elif sigma.shape not in ((), (len(x),)):
        raise ValueError(
            f"sigma has shape {tuple(sigma.shape)}; () or ({len(x)},), one per sample, is needed"
        )
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, data, sigma)):
        raise ValueError("mixture_score is not differentiable; detach x, data and sigma")
    return sigma.to(torch.float64).square().reciprocal().expand(len(x))


def _values(block: Tensor, x: Tensor) -> Tensor:
    """Return data points as rows of ``x``'s dtype."""
    rows = block.flatten(1).to(x.dtype)
    return rows / 255 if block.dtype == torch.uint8 else rows


def _blockwise(x: Tensor, data: Tensor, precision: Tensor, data_block: int) -> Tensor:
    blocks = data.split(data_block)
    # Any point among the data keeps the expansion below from cancelling more than need be.
    centre = _values(blocks[0], x).to(torch.float64).mean(0)
    query = x.to(torch.float64) - centre
    scaled = query * precision[:, None]
    half = precision[:, None] / 2
    maximum = query.new_full((len(x), 1), -math.inf)
    total = torch.zeros_like(maximum)
    weighted = torch.zeros_like(query)
    # At small sigma few points have weight, but how many is known on the host only after a wait.
    skip = x.device.type == "cpu" and not torch.compiler.is_compiling()
    for block in blocks:
        # In place: mixed dtypes in one operation are 20 times slower on the CPU.
        rows = _values(block, x).to(torch.float64, copy=True).sub_(centre)
        # -||x - x_i||^2 / (2 sigma^2), less the term that all x_i share.
        logits = scaled @ rows.T - half * torch.linalg.vector_norm(rows, dim=1).square()
        before, maximum = maximum, torch.maximum(maximum, logits.amax(1, keepdim=True))
        weights = torch.exp(logits - maximum)
        rescale = torch.exp(before - maximum)
        total = total * rescale + weights.sum(1, keepdim=True)
        if skip:
            matters = (weights > _NEGLIGIBLE).any(0)
            weights, rows = weights[:, matters], rows[matters]
        weighted = weighted * rescale + weights @ rows
    return ((weighted / total - query) * precision[:, None]).to(x.dtype)


@torch.library.custom_op("scorekit::mixture_score", mutates_args=())
def _mixture_score(x: Tensor, data: Tensor, precision: Tensor) -> Tensor:
    return mixture_score_triton(x, data, precision)


@_mixture_score.register_fake
def _(x: Tensor, data: Tensor, precision: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def mixture_score_triton(
    x: Tensor, data: Tensor, precision: Tensor, *, splits: int | None = None
) -> Tensor:
    """Launch the kernel: ``x`` (B, D) float32, ``data`` (N, D), ``precision`` 1 / sigma^2 (B,).

    ``splits`` is how many parts of the data are summed apart, by default enough to fill the device;
    each needs memory for (B, D) float32.
    """
    (n_queries, dim), n_data = x.shape, len(data)
    if x.numel() == 0:
        return x.new_empty(x.shape)
    x, data, precision = x.contiguous(), data.contiguous(), precision.contiguous()
    query_blocks = -(-n_queries // BLOCKS["BLOCK_M"])
    tiles = -(-n_data // BLOCKS["BLOCK_N"])
    if splits is None:
        splits = max(1, 2 * _multiprocessors(x.device) // query_blocks)
    tiles_per_split = -(-tiles // splits)
    splits = -(-tiles // tiles_per_split)
    weighted = x.new_zeros((splits, n_queries, dim))
    maximum = x.new_empty((splits, n_queries), dtype=torch.float64)
    total = torch.empty_like(maximum)
    with torch.cuda.device_of(x):
        _mixture_score_kernel[(query_blocks, splits)](
            *(x, data, precision, weighted, maximum, total),
            *(n_queries, n_data, dim, tiles_per_split),
            IS_IMAGE=data.dtype == torch.uint8,
            **BLOCKS,
            num_warps=_NUM_WARPS,
        )
    scale = torch.exp(maximum - maximum.amax(0))
    mean = weighted.mul_(scale[:, :, None]).sum(0, dtype=torch.float64)
    mean /= (total * scale).sum(0)[:, None]
    return ((mean - x) * precision[:, None]).to(x.dtype)


def _multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@jit
def _mixture_score_kernel(
    x_ptr,
    data_ptr,
    precision_ptr,
    weighted_ptr,
    maximum_ptr,
    total_ptr,
    n_queries,
    n_data,
    dim,
    tiles_per_split,
    IS_IMAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    split = tl.program_id(1)
    query = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_query = query < n_queries
    query_start = query.to(tl.int64) * dim
    sum_start = (split.to(tl.int64) * n_queries + query) * dim
    half = tl.load(precision_ptr + query, mask=is_query, other=0.0) * 0.5
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float64)
    total = tl.zeros([BLOCK_M], dtype=tl.float64)
    first_tile = split * tiles_per_split
    for tile in range(first_tile, first_tile + tiles_per_split):
        point = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        is_point = point < n_data
        point_start = point.to(tl.int64) * dim
        squared = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float64)
        for start in range(0, dim, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            is_d = (d < dim)[:, None]
            q = tl.load(
                x_ptr + query_start[None, :] + d[:, None],
                mask=is_query[None, :] & is_d,
                other=0.0,
            )
            y = tl.load(
                data_ptr + point_start[None, :] + d[:, None], mask=is_point[None, :] & is_d, other=0
            ).to(tl.float32)
            if IS_IMAGE:
                y = tl.div_rn(y, 255.0)
            # Dimensions first: their sum then stays within a thread.
            difference = q[:, :, None] - y[:, None, :]
            squared += tl.sum(difference * difference, axis=0).to(tl.float64)
        is_pair = is_query[:, None] & is_point[None, :]
        # A split's last tiles may lie beyond the data: their maximum of -inf then changes nothing.
        logits = tl.where(is_point[None, :], -squared * half[:, None], float("-inf"))
        larger = tl.maximum(maximum, tl.max(logits, axis=1))
        weights = tl.exp((logits - larger[:, None]).to(tl.float32))
        weights = tl.where(is_pair, weights, 0.0)
        rescale = tl.exp((maximum - larger).to(tl.float32))
        total = total * rescale + tl.sum(weights, axis=1)
        maximum = larger
        # At small sigma nearly every tile has underflowed; one that moves a maximum has not.
        if tl.max(tl.max(weights, axis=1), axis=0) > 0.0:
            for start in range(0, dim, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                is_k = (k < dim)[None, :]
                y = tl.load(
                    data_ptr + point_start[:, None] + k[None, :],
                    mask=is_point[:, None] & is_k,
                    other=0,
                ).to(tl.float32)
                if IS_IMAGE:
                    y = tl.div_rn(y, 255.0)
                at = weighted_ptr + sum_start[:, None] + k[None, :]
                mask = is_query[:, None] & is_k
                weighted = tl.load(at, mask=mask, other=0.0) * rescale[:, None]
                tl.store(at, tl.dot(weights, y, weighted, input_precision="ieee"), mask=mask)
            # The next tile may read these sums in other threads.
            tl.debug_barrier()
    tl.store(maximum_ptr + split.to(tl.int64) * n_queries + query, maximum, mask=is_query)
    tl.store(total_ptr + split.to(tl.int64) * n_queries + query, total, mask=is_query)


def kernel_cases() -> "list[KernelCase]":
    """Return what to compile this module's kernel for, without a GPU."""
    from kernels.offline import KernelCase

    pointers = {"x_ptr": "*fp32", "data_ptr": "", "precision_ptr": "*fp64"}
    pointers |= {"weighted_ptr": "*fp32", "maximum_ptr": "*fp64", "total_ptr": "*fp64"}
    sizes = dict.fromkeys(("n_queries", "n_data", "dim", "tiles_per_split"), "i32")
    constants = dict.fromkeys(("IS_IMAGE", *BLOCKS), "constexpr")
    return [
        KernelCase(
            name=f"mixture_score[{dtype}]",
            kernel=_mixture_score_kernel,
            signature={**pointers, "data_ptr": f"*{dtype}", **sizes, **constants},
            constants={"IS_IMAGE": dtype == "u8", **BLOCKS},
            divisible_by_16=(*pointers, "dim"),
            memory_bound=False,
            num_warps=_NUM_WARPS,
        )
        for dtype in ("fp32", "bf16", "u8")
    ]
