"""InstanceNorm++ (Song & Ermon 2019, App. A) and the ELU that follows it, as one operation.

With mu_c and var_c the mean and biased variance of channel c over space, m and v the mean and
unbiased variance of mu over the C channels, n_c = (mu_c - m) / sqrt(v + eps) and
xhat = (x - mu_c) / sqrt(var_c + eps),

    z = gamma_c xhat + gamma_c alpha_c n_c + beta_c,    y = z or ELU(z).

Backward, from dz = dy ELU'(z) and its sums over space, A_c of dz and P_c of dz xhat, S = H W:

    dbeta_c = A_c,    dalpha_c = gamma_c n_c A_c,    dgamma_c = P_c + alpha_c n_c A_c,
    g_c = gamma_c alpha_c A_c,    dmu_c = (g_c - mean(g) - n_c sum(g n) / (C - 1)) / sqrt(v + eps),
    dx = gamma_c / sqrt(var_c + eps) (dz - A_c / S - xhat P_c / S) + dmu_c / S.
"""

import math
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import relu

from kernels.dispatch import Impl, jit, plain_operations_asked_for, tl, triton, use_triton

if TYPE_CHECKING:
    from kernels.offline import KernelCase

Activation = Literal["none", "elu"]

#: Elements of an image that a program holds at a time: 16 for each of its 128 threads.
_TILE = 2048
#: Every program holds a value for each channel.
_MAX_CHANNELS = 4096


def elu(x: Tensor) -> Tensor:
    """Return ELU(x) = max(x, 0) + (exp(min(x, 0)) - 1) (Clevert et al. 2015)."""
    if x.is_cuda:
        return torch.nn.functional.elu(x)
    # On the CPU expm1 is not vectorised, in eager mode as under Inductor, and takes most of a small
    # network's time. exp - 1 costs an absolute error of one rounding near 0.
    positive = relu(x)
    return positive + (torch.exp(x - positive) - 1)


def _elu_(x: Tensor) -> Tensor:
    """As :func:`elu`, in place: a fresh array costs a small network as much as its arithmetic."""
    if x.is_cuda:
        return torch.nn.functional.elu_(x)
    # The larger of x and exp(x) - 1 below 0, and of x and 0 above.
    other = x.clamp(max=0).exp_().sub_(1)
    return torch.maximum(x, other, out=x)


def instance_norm_plus_reference(
    x: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    beta: Tensor,
    *,
    activation: Activation = "none",
    eps: float = 1e-5,
) -> Tensor:
    """Return :func:`instance_norm_plus` as the paper writes it, in the dtype of the arguments."""
    gamma, alpha, beta = (p[..., None, None] for p in (gamma, alpha, beta))
    mu = x.mean((2, 3), keepdim=True)
    var = (x - mu).square().mean((2, 3), keepdim=True)
    m = mu.mean(1, keepdim=True)
    v = (mu - m).square().sum(1, keepdim=True) / (x.shape[1] - 1)
    normalised = (x - mu) / torch.sqrt(var + eps)
    z = gamma * normalised + gamma * alpha * (mu - m) / torch.sqrt(v + eps) + beta
    return torch.nn.functional.elu(z) if activation == "elu" else z


def _normalise(
    x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor, *, eps: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return z and what its backward needs, all in x's dtype."""
    channels = x.shape[1]
    mean = x.mean(dim=(2, 3), keepdim=True)
    centred = x - mean
    # Plain passes: on the CPU var_mean and group_norm over space take three times as long.
    rstd = torch.rsqrt((centred * centred).mean(dim=(2, 3)) + eps)
    # The variance over channels is unbiased, the one over space is not, as the released networks
    # were trained; layer_norm has the biased one, v (C - 1) / C, hence the factor.
    unbiased = (channels - 1) / channels
    means, _, rstd_m = torch.native_layer_norm(
        mean.flatten(1), (channels,), None, None, eps * unbiased
    )
    shift = torch.addcmul(beta, gamma * alpha, means, value=math.sqrt(unbiased))
    scale = gamma * rstd
    z = torch.addcmul(shift.view(mean.shape), centred, scale.view(mean.shape))
    return z, (centred, rstd, means, rstd_m)


def _refuse_second_derivatives() -> None:
    """Raise RuntimeError in a backward pass that is itself to be differentiated.

    torch's own guard (``once_differentiable``) lies on the path to the input alone: the gradients
    of weights would lack their terms through this layer, and nothing would be raised.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "instance_norm_plus: its backward pass cannot be differentiated; run the model within "
            "kernels.dispatch.plain_operations()"
        )


class _InstanceNormPlus(torch.autograd.Function):
    """Eager training: 1.5 to 4 times as fast on a CPU as autograd through the single operations."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor, with_elu: bool, eps: float
    ) -> Tensor:
        y, statistics = _normalise(x, gamma, alpha, beta, eps=eps)
        if with_elu:
            y = _elu_(y)
        # ELU' follows from y, which the next layer keeps alive anyway.
        ctx.save_for_backward(y if with_elu else None, gamma, alpha, *statistics)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        y, gamma, alpha, centred, rstd, means, rstd_m = ctx.saved_tensors
        batch, channels, height, width = centred.shape
        space, unbiased = height * width, (channels - 1) / channels
        dz = dy if y is None else torch.ops.aten.elu_backward(dy, 1, 1, 1, True, y)
        sum_dz = dz.sum((2, 3))
        sum_dz_xhat = (dz * centred).sum((2, 3)) * rstd
        n = means * math.sqrt(unbiased)
        sum_dz_n = sum_dz * n
        grads = [torch.addcmul(sum_dz_xhat, alpha, sum_dz_n), gamma * sum_dz_n, sum_dz]
        # layer_norm's own backward loses digits where the channels' means are nearly equal.
        g = gamma * alpha * sum_dz
        slope_m = (g * means).mean(1, keepdim=True)
        dmu = torch.addcmul(g - g.mean(1, keepdim=True), means, slope_m, value=-1) * rstd_m
        scale = gamma * rstd
        constant = torch.add(dmu * math.sqrt(unbiased), scale * sum_dz, alpha=-1) / space
        slope = scale * rstd * sum_dz_xhat / -space
        plane = (batch, channels, 1, 1)
        dx = torch.addcmul(constant.view(plane), centred, slope.view(plane))
        dx.addcmul_(dz, scale.view(plane))
        if gamma.ndim == 1:
            grads = [grad.sum(0) for grad in grads]
        return dx, *grads, None, None


def _instance_norm_plus_torch(
    x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor, with_elu: bool, eps: float
) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    arguments = [t if t.dtype == dtype else t.to(dtype) for t in (x, gamma, alpha, beta)]
    if plain_operations_asked_for():
        y = instance_norm_plus_reference(*arguments, eps=eps)
        y = elu(y) if with_elu else y
    elif torch.compiler.is_compiling():
        y, _ = _normalise(*arguments, eps=eps)
        y = elu(y) if with_elu else y
    elif torch.is_grad_enabled() and any(argument.requires_grad for argument in arguments):
        y = _InstanceNormPlus.apply(*arguments, with_elu, eps)
    else:
        y, _ = _normalise(*arguments, eps=eps)
        y = _elu_(y) if with_elu else y
    return y if x.dtype == dtype else y.to(x.dtype)


@jit
def _sample_and_channels(program, C, BLOCK_C: tl.constexpr):
    blocks = tl.cdiv(C, BLOCK_C)
    return (program // blocks).to(tl.int64), (program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)


@jit
def _offsets(channel, position, C, S, CHANNELS_LAST: tl.constexpr):
    """Offsets (channel, position) into one sample."""
    if CHANNELS_LAST:
        return position[None, :] * C + channel[:, None]
    else:
        return channel[:, None] * S + position[None, :]


@jit
def _statistics_kernel(
    x_ptr,
    mean_ptr,
    rstd_ptr,
    C,
    S,
    eps,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    sample, channel = _sample_and_channels(tl.program_id(0), C, BLOCK_C)
    x_ptr += sample * (C * S)
    position = tl.arange(0, BLOCK_S)
    mask = (channel < C)[:, None] & (position < S)[None, :]
    x = _load_image(x_ptr + _offsets(channel, position, C, S, CHANNELS_LAST), mask)
    # One pass over memory, around the mean K of the first tile. Its n positions are among the S
    # averaged, so (mu - K)^2 <= (S / n) var: the difference below loses at most a factor 1 + S / n.
    first = tl.sum(x, 1) / tl.minimum(S, BLOCK_S)
    total = tl.where(mask, x - first[:, None], 0.0)
    squares = total * total
    for start in range(BLOCK_S, S, BLOCK_S):
        position = start + tl.arange(0, BLOCK_S)
        mask = (channel < C)[:, None] & (position < S)[None, :]
        x = _load_image(x_ptr + _offsets(channel, position, C, S, CHANNELS_LAST), mask)
        difference = tl.where(mask, x - first[:, None], 0.0)
        total += difference
        squares += difference * difference
    shift = tl.sum(total, 1) / S
    variance = tl.sum(squares, 1) / S - shift * shift
    # A comparison, unlike a maximum, keeps NaN.
    variance = tl.where(variance < 0.0, 0.0, variance)
    tl.store(mean_ptr + sample * C + channel, first + shift, mask=channel < C)
    tl.store(rstd_ptr + sample * C + channel, 1.0 / tl.sqrt(variance + eps), mask=channel < C)


@jit
def _load_row(pointer, channel, C):
    return tl.load(pointer + channel, mask=channel < C, other=0.0).to(tl.float32)


@jit
def _load_image(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@jit
def _channel_statistics(mean_ptr, C, eps, BLOCK_ALL: tl.constexpr):
    """The mean m of one sample's channel means, 1 / sqrt(v + eps) and their normalised values n."""
    channel = tl.arange(0, BLOCK_ALL)
    mean = _load_row(mean_ptr, channel, C)
    m = tl.sum(mean, 0) / C
    centred = tl.where(channel < C, mean - m, 0.0)
    rstd_m = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / (C - 1) + eps)
    return m, rstd_m, centred * rstd_m


@jit
def _apply_kernel(
    x_ptr,
    mean_ptr,
    rstd_ptr,
    gamma_ptr,
    alpha_ptr,
    beta_ptr,
    y_ptr,
    C,
    S,
    row_stride,
    eps,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_ALL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ELU: tl.constexpr,
):
    blocks = tl.cdiv(S, BLOCK_S)
    sample, channel = _sample_and_channels(tl.program_id(0) // blocks, C, BLOCK_C)
    position = (tl.program_id(0) % blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
    mask = (channel < C)[:, None] & (position < S)[None, :]
    offsets = _offsets(channel, position, C, S, CHANNELS_LAST)
    x = _load_image(x_ptr + sample * (C * S) + offsets, mask)

    m, rstd_m, _ = _channel_statistics(mean_ptr + sample * C, C, eps, BLOCK_ALL)
    mean = _load_row(mean_ptr + sample * C, channel, C)
    gamma = _load_row(gamma_ptr + sample * row_stride, channel, C)
    alpha = _load_row(alpha_ptr + sample * row_stride, channel, C)
    beta = _load_row(beta_ptr + sample * row_stride, channel, C)
    scale = gamma * _load_row(rstd_ptr + sample * C, channel, C)
    shift = gamma * alpha * ((mean - m) * rstd_m) + beta
    z = (x - mean[:, None]) * scale[:, None] + shift[:, None]
    if ELU:
        # A comparison, unlike a minimum, keeps NaN.
        z = tl.where(z > 0.0, z, tl.exp(tl.where(z > 0.0, 0.0, z)) - 1.0)
    tl.store(y_ptr + sample * (C * S) + offsets, z.to(y_ptr.dtype.element_ty), mask=mask)


@jit
def _xhat_and_dz(x, dz, mean, rstd, gamma, shift, ELU: tl.constexpr):
    """The normalised x, and dz from dy (given as dz), for which z is made anew from x."""
    xhat = (x - mean[:, None]) * rstd[:, None]
    if ELU:
        z = xhat * gamma[:, None] + shift[:, None]
        dz = dz * tl.exp(tl.where(z > 0.0, 0.0, z))
    return xhat, dz


@jit
def _backward_sums_kernel(
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    gamma_ptr,
    alpha_ptr,
    beta_ptr,
    sums_ptr,
    C,
    S,
    row_stride,
    sums_stride,
    eps,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_ALL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ELU: tl.constexpr,
):
    sample, channel = _sample_and_channels(tl.program_id(0), C, BLOCK_C)
    m, rstd_m, _ = _channel_statistics(mean_ptr + sample * C, C, eps, BLOCK_ALL)
    mean = _load_row(mean_ptr + sample * C, channel, C)
    rstd = _load_row(rstd_ptr + sample * C, channel, C)
    gamma = _load_row(gamma_ptr + sample * row_stride, channel, C)
    alpha = _load_row(alpha_ptr + sample * row_stride, channel, C)
    n = (mean - m) * rstd_m
    shift = gamma * alpha * n + _load_row(beta_ptr + sample * row_stride, channel, C)
    x_ptr += sample * (C * S)
    dy_ptr += sample * (C * S)
    dz_tile = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
    dz_xhat_tile = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
    for start in range(0, S, BLOCK_S):
        position = start + tl.arange(0, BLOCK_S)
        mask = (channel < C)[:, None] & (position < S)[None, :]
        offsets = _offsets(channel, position, C, S, CHANNELS_LAST)
        x = _load_image(x_ptr + offsets, mask)
        dy = _load_image(dy_ptr + offsets, mask)
        xhat, dz = _xhat_and_dz(x, dy, mean, rstd, gamma, shift, ELU)
        dz_tile += dz
        dz_xhat_tile += dz * xhat
    sum_dz = tl.sum(dz_tile, 1)
    sum_dz_xhat = tl.sum(dz_xhat_tile, 1)
    # Rows: the gradients of gamma, alpha and beta (= the sum of dz), then the sum of dz xhat.
    sums_ptr += sample * C + channel
    tl.store(sums_ptr, sum_dz_xhat + alpha * n * sum_dz, mask=channel < C)
    tl.store(sums_ptr + sums_stride, gamma * n * sum_dz, mask=channel < C)
    tl.store(sums_ptr + 2 * sums_stride, sum_dz, mask=channel < C)
    tl.store(sums_ptr + 3 * sums_stride, sum_dz_xhat, mask=channel < C)


@jit
def _backward_apply_kernel(
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    gamma_ptr,
    alpha_ptr,
    beta_ptr,
    sums_ptr,
    dx_ptr,
    C,
    S,
    row_stride,
    sums_stride,
    eps,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_ALL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ELU: tl.constexpr,
):
    blocks = tl.cdiv(S, BLOCK_S)
    sample, channel = _sample_and_channels(tl.program_id(0) // blocks, C, BLOCK_C)
    position = (tl.program_id(0) % blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
    mask = (channel < C)[:, None] & (position < S)[None, :]
    offsets = _offsets(channel, position, C, S, CHANNELS_LAST)
    x = _load_image(x_ptr + sample * (C * S) + offsets, mask)
    dy = _load_image(dy_ptr + sample * (C * S) + offsets, mask)

    mean_ptr += sample * C
    gamma_ptr += sample * row_stride
    alpha_ptr += sample * row_stride
    sum_dz_ptr = sums_ptr + 2 * sums_stride + sample * C
    m, rstd_m, n = _channel_statistics(mean_ptr, C, eps, BLOCK_ALL)
    every = tl.arange(0, BLOCK_ALL)
    g = _load_row(gamma_ptr, every, C) * _load_row(alpha_ptr, every, C)
    g *= _load_row(sum_dz_ptr, every, C)
    mean_g = tl.sum(g, 0) / C
    slope_m = tl.sum(g * n, 0) / (C - 1)

    mean = _load_row(mean_ptr, channel, C)
    rstd = _load_row(rstd_ptr + sample * C, channel, C)
    gamma = _load_row(gamma_ptr, channel, C)
    weight = gamma * _load_row(alpha_ptr, channel, C)
    sum_dz = _load_row(sum_dz_ptr, channel, C)
    sum_dz_xhat = _load_row(sum_dz_ptr + sums_stride, channel, C)
    n = (mean - m) * rstd_m
    shift = weight * n + _load_row(beta_ptr + sample * row_stride, channel, C)
    dmu = rstd_m * (weight * sum_dz - mean_g - n * slope_m)
    xhat, dz = _xhat_and_dz(x, dy, mean, rstd, gamma, shift, ELU)
    dz -= (sum_dz / S)[:, None] + xhat * (sum_dz_xhat / S)[:, None]
    dx = (gamma * rstd)[:, None] * dz + (dmu / S)[:, None]
    tl.store(dx_ptr + sample * (C * S) + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def _memory_format(x: Tensor) -> torch.memory_format:
    # By order of strides, which slices keep too.
    return torch.channels_last if x.stride(1) < x.stride(3) else torch.contiguous_format


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _blocks(channels: int, space: int, channels_last: bool, *, over_space: bool) -> tuple[int, int]:
    """Return (BLOCK_C, BLOCK_S); ``over_space`` says that one program loops over all of space."""
    if channels_last:
        # Loops need many programs, hence few channels: 32 bytes, one sector, at the least.
        block_c = min(_power_of_two(channels), 16 if over_space else 128)
        return block_c, min(_power_of_two(space), _TILE // block_c)
    block_s = min(_power_of_two(space), 1024)
    return min(_power_of_two(channels), max(_TILE // block_s, 1)), block_s


def _rows(*parameters: Tensor) -> tuple[list[Tensor], int]:
    """Return (gamma, alpha, beta), readable with one stride between samples, and that stride."""
    strides = {parameter.stride() for parameter in parameters}
    if len(strides) > 1 or parameters[0].stride(-1) != 1:
        parameters = tuple(parameter.contiguous() for parameter in parameters)
    return list(parameters), parameters[0].stride(0) if parameters[0].ndim == 2 else 0


def instance_norm_plus_triton(
    x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor, with_elu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernels; return y, and the means and 1 / sqrt(var + eps), float32 (B, C)."""
    batch, channels, height, width = x.shape
    space, memory_format = height * width, _memory_format(x)
    channels_last = memory_format == torch.channels_last
    x = x.contiguous(memory_format=memory_format)
    y = torch.empty_like(x, memory_format=memory_format)
    mean, rstd = (x.new_empty((batch, channels), dtype=torch.float32) for _ in range(2))
    if batch == 0:
        return y, mean, rstd
    parameters, row_stride = _rows(gamma, alpha, beta)
    with torch.cuda.device_of(x):
        block_c, block_s = _blocks(channels, space, channels_last, over_space=True)
        _statistics_kernel[(batch * triton.cdiv(channels, block_c),)](
            *(x, mean, rstd, channels, space, eps),
            BLOCK_C=block_c,
            BLOCK_S=block_s,
            CHANNELS_LAST=channels_last,
        )
        block_c, block_s = _blocks(channels, space, channels_last, over_space=False)
        # All blocks along one axis of the grid: the others end at 65535.
        blocks = triton.cdiv(channels, block_c) * triton.cdiv(space, block_s)
        _apply_kernel[(batch * blocks,)](
            *(x, mean, rstd, *parameters, y, channels, space, row_stride, eps),
            BLOCK_C=block_c,
            BLOCK_S=block_s,
            BLOCK_ALL=_power_of_two(channels),
            CHANNELS_LAST=channels_last,
            ELU=with_elu,
        )
    return y, mean, rstd


def instance_norm_plus_backward_triton(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    beta: Tensor,
    with_elu: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Launch the kernels; return dx and (dgamma, dalpha, dbeta, P), float32 (4, B, C)."""
    batch, channels, height, width = x.shape
    space, memory_format = height * width, _memory_format(x)
    channels_last = memory_format == torch.channels_last
    x, dy = (tensor.contiguous(memory_format=memory_format) for tensor in (x, dy))
    dx = torch.empty_like(x, memory_format=memory_format)
    sums = x.new_empty((4, batch, channels), dtype=torch.float32)
    if batch == 0:
        return dx, sums
    parameters, row_stride = _rows(gamma, alpha, beta)
    arrays = (dy, x, mean, rstd, *parameters, sums)
    sizes = (channels, space, row_stride, batch * channels, eps)
    constants = {
        "BLOCK_ALL": _power_of_two(channels),
        "CHANNELS_LAST": channels_last,
        "ELU": with_elu,
    }
    with torch.cuda.device_of(x):
        block_c, block_s = _blocks(channels, space, channels_last, over_space=True)
        _backward_sums_kernel[(batch * triton.cdiv(channels, block_c),)](
            *arrays, *sizes, BLOCK_C=block_c, BLOCK_S=block_s, **constants
        )
        block_c, block_s = _blocks(channels, space, channels_last, over_space=False)
        blocks = triton.cdiv(channels, block_c) * triton.cdiv(space, block_s)
        _backward_apply_kernel[(batch * blocks,)](
            *arrays, dx, *sizes, BLOCK_C=block_c, BLOCK_S=block_s, **constants
        )
    return dx, sums


_forward_op = torch.library.custom_op(
    "scorekit::instance_norm_plus", instance_norm_plus_triton, mutates_args=()
)
_backward_op = torch.library.custom_op(
    "scorekit::instance_norm_plus_backward", instance_norm_plus_backward_triton, mutates_args=()
)


@_forward_op.register_fake
def _(
    x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor, with_elu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x, memory_format=_memory_format(x)), mean, rstd


@_backward_op.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    beta: Tensor,
    with_elu: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    sums = x.new_empty((4, *x.shape[:2]), dtype=torch.float32)
    return torch.empty_like(x, memory_format=_memory_format(x)), sums


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gamma, alpha, beta, ctx.with_elu, ctx.eps = inputs
    ctx.save_for_backward(x, *output[1:], gamma, alpha, beta)


def _backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    _refuse_second_derivatives()
    dx, sums = _backward_op(dy, *ctx.saved_tensors, ctx.with_elu, ctx.eps)
    gamma = ctx.saved_tensors[3]
    grads = sums[:3] if gamma.ndim == 2 else sums[:3].sum(1)
    return dx, *grads.to(gamma.dtype).unbind(0), None, None


_forward_op.register_autograd(_backward, setup_context=_setup_context)


def _check(x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor, activation: str) -> str | None:
    """Raise ValueError for bad arguments; return why the kernels cannot take good ones, or None."""
    # Called on every layer of small networks: few attributes, each read once, until something is
    # wrong.
    shape, dtype, row_dtype = x.shape, x.dtype, gamma.dtype
    size = shape[1:].numel()
    if len(shape) != 4 or shape[1] < 2 or size == 0:
        needed = "(B, C, H, W) with C >= 2, H >= 1 and W >= 1 is needed"
        raise ValueError(f"x has shape {tuple(shape)}; {needed}")
    if not dtype.is_floating_point:
        raise ValueError(f"x is {dtype}; a floating dtype is needed")
    rows = shape[1:2] if gamma.ndim == 1 else shape[:2]
    for name, parameter in (("gamma", gamma), ("alpha", alpha), ("beta", beta)):
        if parameter.shape != rows:
            needed = f"{tuple(shape[1:2])}, or {tuple(shape[:2])}, for all three is needed"
            raise ValueError(f"{name} has shape {tuple(parameter.shape)}; {needed}")
    if activation not in ("none", "elu"):
        raise ValueError(f"activation = {activation!r} is unknown; known: none, elu")
    if dtype == torch.float64 or row_dtype == torch.float64:
        return "float64 is not supported"
    if alpha.dtype != row_dtype or beta.dtype != row_dtype:
        return "gamma, alpha and beta differ in dtype"
    if shape[1] > _MAX_CHANNELS:
        return f"C = {shape[1]} exceeds {_MAX_CHANNELS}"
    if size >= 2**31:
        return f"a sample has {size} elements; offsets within one are 32-bit"
    return None


def instance_norm_plus(
    x: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    beta: Tensor,
    *,
    activation: Activation = "none",
    eps: float = 1e-5,
    impl: Impl = "auto",
) -> Tensor:
    """Return InstanceNorm++ of ``x`` (Song & Ermon 2019, App. A), then ELU if ``activation`` is so.

    ``x`` is (B, C, H, W) with C >= 2, float32, bfloat16, float16 or, in plain torch only, float64;
    ``gamma``, ``alpha`` and ``beta`` are all (C,), or all (B, C) with a row for each sample, in any
    floating dtype. Statistics and arithmetic are float32, or float64 for float64 ``x``; the result
    has the dtype and memory format of ``x``. Over channels the variance is the unbiased one, over
    space the biased one; the equation is at the top of this file. Differentiable once, in reverse;
    within :func:`kernels.dispatch.plain_operations` in every mode and order.

    Raises ValueError for other shapes and dtypes, an unknown ``activation``, and as
    :func:`kernels.dispatch.use_triton` does.
    """
    unsupported = _check(x, gamma, alpha, beta, activation)
    arguments = (x, gamma, alpha, beta, activation == "elu", eps)
    if use_triton("instance_norm_plus", impl, x, gamma, alpha, beta, unsupported=unsupported):
        return _forward_op(*arguments)[0]
    return _instance_norm_plus_torch(*arguments)


def kernel_cases() -> list["KernelCase"]:
    """Return the kernels as launched for 128 channels of 32 x 32 and 256 of 16 x 16 pixels.

    The latter, of other blocks and the same code, for one target alone.
    """
    from kernels.offline import TARGETS, KernelCase

    images = ("x_ptr", "dy_ptr", "y_ptr", "dx_ptr")
    over_space_kernels = (_statistics_kernel, _backward_sums_kernel)
    kernels = (*over_space_kernels, _apply_kernel, _backward_apply_kernel)
    cases = []
    for (channels, side), dtype, channels_last, kernel in product(
        ((128, 32), (256, 16)), ("fp32", "bf16"), (False, True), kernels
    ):
        over_space = kernel in over_space_kernels
        block_c, block_s = _blocks(channels, side * side, channels_last, over_space=over_space)
        values = {
            "BLOCK_C": block_c,
            "BLOCK_S": block_s,
            "BLOCK_ALL": _power_of_two(channels),
            "CHANNELS_LAST": channels_last,
            "ELU": True,
        }
        arguments = [name for name in kernel.arg_names if name not in values]
        types = {name: f"*{dtype}" if name in images else "*fp32" for name in arguments}
        types |= {name: "i32" for name in arguments if not name.endswith("_ptr")} | {"eps": "fp32"}
        layout = "channels_last" if channels_last else "contiguous"
        stage = kernel.__name__.removeprefix("_").removesuffix("_kernel")
        size = f"{channels}x{side}x{side}"
        cases.append(
            KernelCase(
                name=f"instance_norm_plus.{stage}[{dtype}, {layout}, {size}]",
                kernel=kernel,
                signature={name: types.get(name, "constexpr") for name in kernel.arg_names},
                constants={name: values[name] for name in kernel.arg_names if name in values},
                divisible_by_16=tuple(name for name in arguments if name != "eps"),
                memory_bound=True,
                reduces=over_space,
                targets=tuple(TARGETS) if side == 32 else ("sm_90",),
            )
        )
    return cases
