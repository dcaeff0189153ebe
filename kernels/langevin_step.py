"""One step of Langevin dynamics with its noise made on the fly."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.dispatch import Impl, constexpr, jit, tl, use_triton
from kernels.philox import (
    NOISE_SIGNATURE,
    Stream,
    check_counters,
    noise_launch,
    normals_at,
    philox_normal_reference,
    too_large,
)
from kernels.sample_layout import sample_offset, walkable

if TYPE_CHECKING:
    from kernels.offline import KernelCase

_STREAM = constexpr(int(Stream.LANGEVIN))


@jit
def _langevin_step_kernel(
    out_ptr,
    x_ptr,
    score_ptr,
    alpha_ptr,
    sigma_ptr,
    amplitude_ptr,
    key_ptr,
    index_ptr,
    step_ptr,
    mix_key_ptr,
    mix_weights_ptr,
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
    score_sample,
    score_channel,
    score_pixel,
    mix_sample,
    OUT_FLAT: tl.constexpr,
    X_FLAT: tl.constexpr,
    SCORE_FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = (tl.program_id(0) // n_blocks).to(tl.int64)
    q = (tl.program_id(0) % n_blocks) * BLOCK + tl.arange(0, BLOCK)
    alpha = tl.load(alpha_ptr).to(tl.float32)
    if amplitude_ptr is None:
        amplitude = tl.sqrt_rn(2.0 * alpha)
    else:
        amplitude = tl.load(amplitude_ptr).to(tl.float32)
    if sigma_ptr is not None:
        alpha = tl.div_rn(alpha, tl.load(sigma_ptr).to(tl.float32))
    z0, z1, z2, z3 = normals_at(key_ptr, index_ptr, step_ptr, sample, q, _STREAM)
    if mix_key_ptr is not None:
        cos = tl.load(mix_weights_ptr + sample * mix_sample)
        sin = tl.load(mix_weights_ptr + sample * mix_sample + 1)
        y0, y1, y2, y3 = normals_at(mix_key_ptr, index_ptr, step_ptr, sample, q, _STREAM)
        z0, z1 = cos * z0 + sin * y0, cos * z1 + sin * y1
        z2, z3 = cos * z2 + sin * y2, cos * z3 + sin * y3
    z = (z0, z1, z2, z3)
    out_ptr += sample * out_sample
    x_ptr += sample * x_sample
    score_ptr += sample * score_sample
    for j in tl.static_range(4):
        p = j * n_counters + q
        mask = (q < n_counters) & (p < size)
        x_at = sample_offset(p, n_pixels, x_channel, x_pixel, X_FLAT)
        score_at = sample_offset(p, n_pixels, score_channel, score_pixel, SCORE_FLAT)
        out_at = sample_offset(p, n_pixels, out_channel, out_pixel, OUT_FLAT)
        x = tl.load(x_ptr + x_at, mask=mask)
        score = tl.load(score_ptr + score_at, mask=mask).to(tl.float32)
        tl.store(out_ptr + out_at, x + alpha * score + amplitude * z[j], mask=mask)


def _mix_weights(angle: Tensor, dtype: torch.dtype) -> Tensor:
    angle = angle.to(dtype)
    return torch.stack([torch.cos(angle), torch.sin(angle)], dim=-1)


def langevin_step_triton(
    out: Tensor,
    x: Tensor | None,
    score: Tensor,
    alpha: Tensor,
    sigma: Tensor | None,
    amplitude: Tensor | None,
    key: Tensor,
    sample_index: Tensor,
    step: Tensor,
    mix_key: Tensor | None,
    mix_weights: Tensor | None,
) -> None:
    """Launch the kernel of :func:`langevin_step`, from ``out`` itself where ``x`` is None.

    ``mix_weights``, float32 (2,) or (B, 2), holds cosine and sine of the angle.
    """
    if out.numel() == 0:
        return
    source, source_strides = walkable(out if x is None else x)
    score, score_strides = walkable(score)
    target, target_strides = walkable(out)
    if mix_weights is not None:
        mix_weights = mix_weights.expand(out.shape[0], 2)
    size = math.prod(out.shape[1:])
    n_counters, n_blocks, meta = noise_launch(size)
    with torch.cuda.device_of(out):
        _langevin_step_kernel[(out.shape[0] * n_blocks,)](
            *(target, source, score, alpha, sigma, amplitude),
            *(key.contiguous(), sample_index.contiguous(), step),
            *(None if mix_key is None else mix_key.contiguous(), mix_weights),
            *(size, n_counters, n_blocks, math.prod(out.shape[2:])),
            *(*target_strides, *source_strides, *score_strides),
            0 if mix_weights is None else mix_weights.stride(0),
            OUT_FLAT=target_strides[1:] == (0, 0),
            X_FLAT=source_strides[1:] == (0, 0),
            SCORE_FLAT=score_strides[1:] == (0, 0),
            **meta,
        )
    if target is not out:
        out.copy_(target)


_langevin_step_op = torch.library.custom_op(
    "scorekit::langevin_step", langevin_step_triton, mutates_args={"out"}
)


@_langevin_step_op.register_fake
def _(out, x, score, alpha, sigma, amplitude, key, sample_index, step, mix_key, mix_weights):
    return None


def langevin_step_reference(
    x: Tensor,
    score: Tensor,
    alpha: Tensor,
    key: Tensor,
    sample_index: Tensor,
    step: Tensor,
    *,
    sigma: Tensor | None = None,
    amplitude: Tensor | None = None,
    mix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """:func:`langevin_step` in plain torch."""
    shape = tuple(x.shape[1:])
    z = philox_normal_reference(key, sample_index, step, shape, Stream.LANGEVIN).to(x.dtype)
    if mix is not None:
        other = philox_normal_reference(mix[0], sample_index, step, shape, Stream.LANGEVIN)
        weights = _mix_weights(mix[1], x.dtype).reshape(-1, 2, *(1 for _ in shape))
        z = weights[:, 0] * z + weights[:, 1] * other.to(x.dtype)
    alpha = alpha.to(x.dtype)
    factor = alpha if sigma is None else alpha / sigma.to(x.dtype)
    noise = torch.sqrt(2 * alpha) if amplitude is None else amplitude.to(x.dtype)
    return x + factor * score.to(x.dtype) + noise * z


def _check(
    x: Tensor,
    score: Tensor,
    alpha: Tensor,
    sample_index: Tensor,
    sigma: Tensor | None,
    amplitude: Tensor | None,
    mix: tuple[Tensor, Tensor] | None,
    out: Tensor | None,
) -> None:
    if x.ndim == 0 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; float32 or float64 (B, ...) is needed"
        )
    if score.shape != x.shape:
        raise ValueError(f"score has shape {tuple(score.shape)}; that of x is {tuple(x.shape)}")
    if sample_index.shape[0] != x.shape[0]:
        raise ValueError(
            f"sample_index has shape {tuple(sample_index.shape)}; one per sample of x "
            f"({x.shape[0]},) is needed"
        )
    for name, scalar in (("alpha", alpha), ("sigma", sigma), ("amplitude", amplitude)):
        if scalar is not None and scalar.ndim != 0:
            raise ValueError(f"{name} has shape {tuple(scalar.shape)}; a scalar tensor is needed")
    if mix is not None:
        if mix[0].shape != (2,):
            raise ValueError(f"mix has a key of shape {tuple(mix[0].shape)}; (2,) is needed")
        if mix[1].shape not in ((), (x.shape[0],)):
            raise ValueError(
                f"mix has an angle of shape {tuple(mix[1].shape)}; () or ({x.shape[0]},) is needed"
            )
    if out is not None:
        if out.shape != x.shape or out.dtype != x.dtype:
            raise ValueError(
                f"out is {out.dtype} of shape {tuple(out.shape)}; {x.dtype} of shape "
                f"{tuple(x.shape)}, as x, is needed"
            )
        if any(n > 1 and s == 0 for n, s in zip(out.shape, out.stride(), strict=True)):
            raise ValueError(f"out has strides {out.stride()}; elements must not share memory")


def _unsupported(x: Tensor, score: Tensor) -> str | None:
    if x.dtype != torch.float32:
        return f"x is {x.dtype}"
    if score.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"score is {score.dtype}"
    if torch.is_grad_enabled() and (x.requires_grad or score.requires_grad):
        return "the kernel has no gradient"
    return too_large(x.shape[1:])


def langevin_step(
    x: Tensor,
    score: Tensor,
    alpha: Tensor,
    key: Tensor,
    sample_index: Tensor,
    step: Tensor,
    *,
    sigma: Tensor | None = None,
    amplitude: Tensor | None = None,
    mix: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Return x + (alpha / sigma) * score + sqrt(2 alpha) * z, z ~ N(0, I), in one pass.

    Song & Ermon 2020, Eq. 1. ``sigma`` divides the output of a network conditioned by Technique 3;
    None leaves the score as it is. ``amplitude`` takes the place of sqrt(2 alpha), as consistent
    annealed sampling needs (Jolicoeur-Martineau et al. 2020). ``x`` (B, ...) is float32 or float64
    and gives the result's dtype; ``score`` has the same shape in any floating dtype; both in any
    memory format. ``alpha`` and ``sigma`` are scalar tensors > 0, ``amplitude`` one >= 0; ``key``,
    ``sample_index`` (B,) and ``step`` are as in :func:`kernels.philox.philox_normal`. Scalars are
    tensors so that one compiled graph serves every noise level and step.

    ``mix`` (second key, angle) takes z = cos(angle) z1 + sin(angle) z2 of the two keys, with a
    scalar angle or one per sample (B,), as the paper interpolates between samples. ``out`` receives
    the result: x itself, or a tensor of its shape and dtype in memory apart from it. The kernel
    takes float32 ``x``, and has no gradient; plain torch has. Raises ValueError for other shapes
    and dtypes and as :func:`kernels.dispatch.use_triton` does.
    """
    check_counters(key, sample_index, step)
    _check(x, score, alpha, sample_index, sigma, amplitude, mix, out)
    tensors = (x, score, alpha, key, sample_index, step, sigma, amplitude, *(mix or ()), out)
    if use_triton("langevin_step", impl, *tensors, unsupported=_unsupported(x, score)):
        result = torch.empty_like(x) if out is None else out
        mix_key, weights = (None, None) if mix is None else (mix[0], _mix_weights(mix[1], x.dtype))
        source = None if out is x else x
        scalars = (alpha, sigma, amplitude)
        _langevin_step_op(
            result, source, score, *scalars, key, sample_index, step, mix_key, weights
        )
        return result
    result = langevin_step_reference(
        x, score, alpha, key, sample_index, step, sigma=sigma, amplitude=amplitude, mix=mix
    )
    return result if out is None else out.copy_(result)


def kernel_cases() -> list["KernelCase"]:
    """Return the kernel's specialisations for :mod:`kernels.offline`."""
    from kernels.offline import KernelCase

    strides = [
        f"{tensor}_{axis}"
        for tensor in ("out", "x", "score")
        for axis in ("sample", "channel", "pixel")
    ]
    pointers = {
        "sigma": {"sigma_ptr": "*fp32"},
        "amplitude": {"amplitude_ptr": "*fp32"},
        "mix": {"mix_key_ptr": "*i64", "mix_weights_ptr": "*fp32"},
    }
    variants: dict[str, tuple[str, tuple[str, ...], bool]] = {
        "fp32": ("*fp32", (), True),
        "bf16": ("*bf16", (), True),
        "bf16, sigma and amplitude": ("*bf16", ("sigma", "amplitude"), True),
        "fp32, sigma and mix": ("*fp32", ("sigma", "mix"), True),
        "bf16, every option, channels_last": ("*bf16", tuple(pointers), False),
    }
    found = []
    for name, (score, options, flat) in variants.items():
        absent = {
            pointer: None
            for option, own in pointers.items()
            if option not in options
            for pointer in own
        }
        optional = {pointer: kind for own in pointers.values() for pointer, kind in own.items()}
        optional |= dict.fromkeys(absent, "constexpr")
        flags = dict.fromkeys(("OUT_FLAT", "X_FLAT", "SCORE_FLAT"), flat)
        found.append(
            KernelCase(
                name=f"langevin_step[{name}]",
                kernel=_langevin_step_kernel,
                signature={
                    **{"out_ptr": "*fp32", "x_ptr": "*fp32", "score_ptr": score},
                    **{"alpha_ptr": "*fp32", **optional, **NOISE_SIGNATURE, "n_pixels": "i32"},
                    **dict.fromkeys((*strides, "mix_sample"), "i32"),
                    **dict.fromkeys((*flags, "BLOCK"), "constexpr"),
                },
                constants={
                    **absent,
                    **flags,
                    "BLOCK": 256,
                },
                divisible_by_16=(
                    *("out_ptr", "x_ptr", "score_ptr", "size", "n_counters", "n_pixels"),
                    *(stride for stride in strides if stride.endswith("sample")),
                ),
                memory_bound=flat,
                num_warps=1,
            )
        )
    return found
