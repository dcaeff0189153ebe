"""Denoising score matching with its noise made twice from one counter and never stored.

:func:`perturb` adds the noise to the images, :func:`dsm_residual_loss` makes the same noise again
to compare a score with it, and so does the gradient of that.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels.dispatch import Impl, constexpr, jit, tl, use_triton
from kernels.philox import (
    NOISE_SIGNATURE,
    Stream,
    check_counters,
    counters_per_warp,
    noise_launch,
    normals_at,
    philox_normal_reference,
    too_large,
)
from kernels.sample_layout import sample_offset, walkable

if TYPE_CHECKING:
    from kernels.offline import KernelCase

_STREAM = constexpr(int(Stream.PERTURBATION))


@jit
def _perturb_kernel(
    out_ptr,
    x_ptr,
    sigma_ptr,
    key_ptr,
    index_ptr,
    step_ptr,
    size,
    n_counters,
    n_blocks,
    n_pixels,
    out_sample,
    out_channel,
    out_pixel,
    x_sample,
    x_channel,
    x_pixel,
    OUT_FLAT: tl.constexpr,
    X_FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = (tl.program_id(0) // n_blocks).to(tl.int64)
    q = (tl.program_id(0) % n_blocks) * BLOCK + tl.arange(0, BLOCK)
    sigma = tl.load(sigma_ptr + sample)
    z = normals_at(key_ptr, index_ptr, step_ptr, sample, q, _STREAM)
    out_ptr += sample * out_sample
    x_ptr += sample * x_sample
    for j in tl.static_range(4):
        p = j * n_counters + q
        mask = (q < n_counters) & (p < size)
        x = tl.load(x_ptr + sample_offset(p, n_pixels, x_channel, x_pixel, X_FLAT), mask=mask)
        out_at = sample_offset(p, n_pixels, out_channel, out_pixel, OUT_FLAT)
        tl.store(out_ptr + out_at, x + sigma * z[j], mask=mask)


@jit
def _dsm_residual_loss_kernel(
    partial_ptr,
    score_ptr,
    sigma_ptr,
    key_ptr,
    index_ptr,
    step_ptr,
    size,
    n_counters,
    n_blocks,
    n_pixels,
    score_sample,
    score_channel,
    score_pixel,
    SCORE_FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = (tl.program_id(0) // n_blocks).to(tl.int64)
    q = (tl.program_id(0) % n_blocks) * BLOCK + tl.arange(0, BLOCK)
    sigma = tl.load(sigma_ptr + sample)
    z = normals_at(key_ptr, index_ptr, step_ptr, sample, q, _STREAM)
    score_ptr += sample * score_sample
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(4):
        p = j * n_counters + q
        mask = (q < n_counters) & (p < size)
        at = sample_offset(p, n_pixels, score_channel, score_pixel, SCORE_FLAT)
        residual = sigma * tl.load(score_ptr + at, mask=mask, other=0.0).to(tl.float32) + z[j]
        total += tl.where(mask, residual * residual, 0.0)
    # No atomics: the sum is the same in every run.
    tl.store(partial_ptr + tl.program_id(0), tl.sum(total, axis=0))


@jit
def _dsm_residual_grad_kernel(
    out_ptr,
    grad_ptr,
    score_ptr,
    sigma_ptr,
    key_ptr,
    index_ptr,
    step_ptr,
    size,
    n_counters,
    n_blocks,
    n_pixels,
    out_sample,
    out_channel,
    out_pixel,
    score_sample,
    score_channel,
    score_pixel,
    OUT_FLAT: tl.constexpr,
    SCORE_FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = (tl.program_id(0) // n_blocks).to(tl.int64)
    q = (tl.program_id(0) % n_blocks) * BLOCK + tl.arange(0, BLOCK)
    sigma = tl.load(sigma_ptr + sample)
    factor = tl.load(grad_ptr + sample) * sigma
    z = normals_at(key_ptr, index_ptr, step_ptr, sample, q, _STREAM)
    out_ptr += sample * out_sample
    score_ptr += sample * score_sample
    for j in tl.static_range(4):
        p = j * n_counters + q
        mask = (q < n_counters) & (p < size)
        at = sample_offset(p, n_pixels, score_channel, score_pixel, SCORE_FLAT)
        residual = sigma * tl.load(score_ptr + at, mask=mask).to(tl.float32) + z[j]
        out_at = sample_offset(p, n_pixels, out_channel, out_pixel, OUT_FLAT)
        gradient = (factor * residual).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + out_at, gradient, mask=mask)


def _per_sample(sigma: Tensor, key: Tensor, sample_index: Tensor, step: Tensor) -> tuple[Any, ...]:
    return sigma.contiguous(), key.contiguous(), sample_index.contiguous(), step


def perturb_triton(
    x: Tensor, sigma: Tensor, key: Tensor, sample_index: Tensor, step: Tensor
) -> Tensor:
    """Launch the kernel of :func:`perturb`; the result has the memory format of ``x``."""
    out = torch.empty_like(x)
    if out.numel():
        (x, strides), (target, target_strides) = walkable(x), walkable(out)
        size = math.prod(x.shape[1:])
        n_counters, n_blocks, meta = noise_launch(size)
        with torch.cuda.device_of(x):
            _perturb_kernel[(x.shape[0] * n_blocks,)](
                *(target, x, *_per_sample(sigma, key, sample_index, step)),
                *(size, n_counters, n_blocks, math.prod(x.shape[2:])),
                *(*target_strides, *strides),
                OUT_FLAT=target_strides[1:] == (0, 0),
                X_FLAT=strides[1:] == (0, 0),
                **meta,
            )
        if target is not out:
            out.copy_(target)
    return out


def dsm_residual_loss_triton(
    score: Tensor, sigma: Tensor, key: Tensor, sample_index: Tensor, step: Tensor
) -> Tensor:
    """Launch the kernel of :func:`dsm_residual_loss`."""
    if score.numel() == 0:
        return score.new_zeros(score.shape[0], dtype=torch.float32)
    score, strides = walkable(score)
    size = math.prod(score.shape[1:])
    n_counters, n_blocks, meta = noise_launch(size, score.element_size())
    partial = score.new_empty((score.shape[0], n_blocks), dtype=torch.float32)
    with torch.cuda.device_of(score):
        _dsm_residual_loss_kernel[(score.shape[0] * n_blocks,)](
            *(partial, score, *_per_sample(sigma, key, sample_index, step)),
            *(size, n_counters, n_blocks, math.prod(score.shape[2:])),
            *strides,
            SCORE_FLAT=strides[1:] == (0, 0),
            **meta,
        )
    return 0.5 * partial.sum(dim=1)


def dsm_residual_grad_triton(
    grad: Tensor, score: Tensor, sigma: Tensor, key: Tensor, sample_index: Tensor, step: Tensor
) -> Tensor:
    """Launch the kernel of the gradient of :func:`dsm_residual_loss`, given that of its result."""
    out = torch.empty_like(score)
    if out.numel():
        (score, strides), (target, target_strides) = walkable(score), walkable(out)
        size, n_bytes = math.prod(score.shape[1:]), score.element_size()
        n_counters, n_blocks, meta = noise_launch(size, n_bytes)
        with torch.cuda.device_of(score):
            _dsm_residual_grad_kernel[(score.shape[0] * n_blocks,)](
                *(target, grad.contiguous(), score, *_per_sample(sigma, key, sample_index, step)),
                *(size, n_counters, n_blocks, math.prod(score.shape[2:])),
                *(*target_strides, *strides),
                OUT_FLAT=target_strides[1:] == (0, 0),
                SCORE_FLAT=strides[1:] == (0, 0),
                **meta,
            )
        if target is not out:
            out.copy_(target)
    return out


_perturb_op = torch.library.custom_op("scorekit::perturb", perturb_triton, mutates_args=())


@_perturb_op.register_fake
def _(x, sigma, key, sample_index, step):
    return torch.empty_like(x)


_perturb_op.register_autograd(lambda ctx, grad: (grad, None, None, None, None))


_dsm_residual_loss_op = torch.library.custom_op(
    "scorekit::dsm_residual_loss", dsm_residual_loss_triton, mutates_args=()
)


@_dsm_residual_loss_op.register_fake
def _(score, sigma, key, sample_index, step):
    return score.new_empty(score.shape[0], dtype=torch.float32)


_dsm_residual_grad_op = torch.library.custom_op(
    "scorekit::dsm_residual_grad", dsm_residual_grad_triton, mutates_args=()
)


@_dsm_residual_grad_op.register_fake
def _(grad, score, sigma, key, sample_index, step):
    return torch.empty_like(score)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_dsm_residual_loss_op.register_autograd(
    lambda ctx, grad: (_dsm_residual_grad_op(grad, *ctx.saved_tensors), None, None, None, None),
    setup_context=_save,
)


def perturb_reference(
    x: Tensor, sigma: Tensor, key: Tensor, sample_index: Tensor, step: Tensor
) -> Tensor:
    """:func:`perturb` in plain torch."""
    shape = tuple(x.shape[1:])
    z = philox_normal_reference(key, sample_index, step, shape, Stream.PERTURBATION)
    return x + sigma.detach().to(x.dtype).reshape(-1, *(1 for _ in shape)) * z.to(x.dtype)


def dsm_residual_loss_reference(
    score: Tensor, sigma: Tensor, key: Tensor, sample_index: Tensor, step: Tensor
) -> Tensor:
    """:func:`dsm_residual_loss` in plain torch."""
    dtype, shape = torch.promote_types(score.dtype, torch.float32), tuple(score.shape[1:])
    z = philox_normal_reference(key, sample_index, step, shape, Stream.PERTURBATION)
    sigma = sigma.detach().to(dtype).reshape(-1, *(1 for _ in shape))
    residual = sigma * score.to(dtype) + z.to(dtype)
    return 0.5 * residual.reshape(score.shape[0], math.prod(shape)).square().sum(dim=1)


def _check(name: str, x: Tensor, sigma: Tensor, sample_index: Tensor) -> None:
    if x.ndim == 0 or not x.is_floating_point():
        raise ValueError(
            f"{name} is {x.dtype} of shape {tuple(x.shape)}; a floating dtype, (B, ...) is needed"
        )
    for other, tensor in (("sigma", sigma), ("sample_index", sample_index)):
        if tensor.shape != x.shape[:1]:
            raise ValueError(
                f"{other} has shape {tuple(tensor.shape)}; one per sample of {name} "
                f"({x.shape[0]},) is needed"
            )


def perturb(
    x: Tensor,
    sigma: Tensor,
    key: Tensor,
    sample_index: Tensor,
    step: Tensor,
    *,
    impl: Impl = "auto",
) -> Tensor:
    """Return x + sigma_b z, z ~ N(0, I): images with the noise of one noise scale each.

    The q_sigma(x~ | x) of Song & Ermon 2020, Eq. 2. ``x`` (B, ...) is float32 or float64 in any
    memory format and gives the result's dtype; ``sigma`` is float32 (B,) > 0; ``key``,
    ``sample_index`` (B,) and ``step`` are as in :func:`kernels.philox.philox_normal`, of stream
    PERTURBATION. The gradient to ``x`` is the identity; none reaches ``sigma``. The kernel takes
    float32. Raises ValueError for other shapes and dtypes and as
    :func:`kernels.dispatch.use_triton` does.
    """
    check_counters(key, sample_index, step)
    _check("x", x, sigma, sample_index)
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x is {x.dtype}; float32 or float64 is needed")
    unsupported = f"x is {x.dtype}" if x.dtype != torch.float32 else too_large(x.shape[1:])
    tensors = (x, sigma, key, sample_index, step)
    if use_triton("perturb", impl, *tensors, unsupported=unsupported):
        return _perturb_op(x, sigma.detach().to(torch.float32), key, sample_index, step)
    return perturb_reference(*tensors)


def dsm_residual_loss(
    score: Tensor,
    sigma: Tensor,
    key: Tensor,
    sample_index: Tensor,
    step: Tensor,
    *,
    impl: Impl = "auto",
) -> Tensor:
    """Return the annealed DSM loss of each image, 1/2 ||sigma_b score + z||^2.

    Song & Ermon 2020, Eq. 2, of the score at x + sigma_b z as :func:`perturb` made it from the same
    ``sigma``, ``key``, ``sample_index`` and ``step``. ``score`` (B, ...) has any floating dtype and
    memory format, which its gradient shares; the result (B,) is float32, or float64 for a float64
    score. No gradient reaches ``sigma``. The kernel takes float32, bfloat16 and float16, adds up in
    float32 in a fixed order, and can be differentiated once. Raises ValueError for other shapes and
    dtypes and as :func:`kernels.dispatch.use_triton` does.
    """
    check_counters(key, sample_index, step)
    _check("score", score, sigma, sample_index)
    kernels_take = score.dtype in (torch.float32, torch.bfloat16, torch.float16)
    unsupported = too_large(score.shape[1:]) if kernels_take else f"score is {score.dtype}"
    tensors = (score, sigma, key, sample_index, step)
    if use_triton("dsm_residual_loss", impl, *tensors, unsupported=unsupported):
        sigma = sigma.detach().to(torch.float32)
        return _dsm_residual_loss_op(score, sigma, key, sample_index, step)
    return dsm_residual_loss_reference(*tensors)


def kernel_cases() -> list["KernelCase"]:
    """Return the kernels' specialisations for :mod:`kernels.offline`."""
    from kernels.offline import KernelCase

    def cases(
        name: str, kernel: Any, dtype: str, small: dict[str, str], *tensors: str, **other: bool
    ) -> list[KernelCase]:
        strides = [f"{t}_{axis}" for t in tensors for axis in ("sample", "channel", "pixel")]
        flags = [f"{tensor.upper()}_FLAT" for tensor in tensors]
        block = {
            hip: counters_per_warp(4 if dtype == "fp32" else 2, hip=hip) for hip in (False, True)
        }
        return [
            KernelCase(
                name=f"{name}[{dtype}, {'hip' if hip else 'cuda'}]",
                kernel=kernel,
                signature={
                    **{f"{tensor}_ptr": f"*{dtype}" for tensor in tensors},
                    **{**small, "sigma_ptr": "*fp32", **NOISE_SIGNATURE, "n_pixels": "i32"},
                    **dict.fromkeys(strides, "i32"),
                    **dict.fromkeys((*flags, "BLOCK"), "constexpr"),
                },
                constants={**dict.fromkeys(flags, True), "BLOCK": block[hip]},
                divisible_by_16=(
                    *(f"{tensor}_ptr" for tensor in tensors),
                    *("size", "n_counters", "n_pixels"),
                    *(f"{tensor}_sample" for tensor in tensors),
                ),
                memory_bound=True,
                num_warps=1,
                targets=targets,
                **other,
            )
            for hip, targets in ((False, ("sm_80", "sm_90")), (True, ("gfx942",)))
        ]

    partial, grad = {"partial_ptr": "*fp32"}, {"grad_ptr": "*fp32"}
    found = cases("perturb", _perturb_kernel, "fp32", {}, "out", "x")
    for dtype in ("fp32", "bf16"):
        loss, gradient = _dsm_residual_loss_kernel, _dsm_residual_grad_kernel
        found += cases("dsm_residual_loss", loss, dtype, partial, "score", reduces=True)
        found += cases("dsm_residual_grad", gradient, dtype, grad, "out", "score")
    return found
