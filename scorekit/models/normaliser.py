"""The log normaliser of an energy model by importance sampling, with how far it can be trusted."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.philox import Stream, philox_key, philox_normal, philox_uniform

#: The share of samples that come from N(0, std^2 I) where the others come from around rows.
BROAD_SHARE = 0.1
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class LogNormaliser:
    """An estimate of log Z from ``n`` weighted samples.

    ``effective_sample_size`` = (sum w)^2 / sum w^2 lies in [1, n]; ``standard_error`` =
    sqrt(1 / effective_sample_size - 1 / n) is that of ``value`` by the delta method. Where the
    effective sample size is small both are too low as a rule: what was never sampled is not missed.
    """

    value: float
    standard_error: float
    effective_sample_size: float
    n: int


@torch.no_grad()
def log_normaliser(
    log_density: Callable[[Tensor], Tensor],
    dim: int,
    *,
    n: int = 1_000_000,
    std: float = 2.0,
    around: Tensor | None = None,
    bandwidth: float = 0.5,
    seed: int = 0,
    chunk: int = 4096,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LogNormaliser:
    """Estimate the log integral of exp(log_density) over R^dim with samples of N(0, std^2 I).

    With ``around`` (N, dim), the training rows as a rule, nine samples of ten come from N(row,
    bandwidth^2 I) instead: far more of them then lie where a model of whitened data has its mass.
    That takes O(n N dim) time, so a thousand rows may be enough.
    ``log_density`` takes (B, dim) of ``dtype`` with B <= ``chunk`` and returns (B,); memory does
    not grow with ``n`` < 2^32. Sums are float64. Sample i is the same in every chunk size. The
    defaults are those of the authors' experiments with deep kernel exponential families. Raises
    ValueError where a log density is NaN or +inf, or all are -inf.
    """
    for name, count in (("dim", dim), ("n", n), ("chunk", chunk)):
        if not 1 <= count < 2**32:
            raise ValueError(f"{name} = {count} must lie in [1, 2**32)")
    for name, width in (("std", std), ("bandwidth", bandwidth)):
        if not (width > 0 and math.isfinite(width)):
            raise ValueError(f"{name} = {width} must be positive and finite")
    rows = None
    if around is not None:
        if around.ndim != 2 or around.shape[1] != dim or not len(around):
            raise ValueError(f"around has shape {tuple(around.shape)}; (N, {dim}) is needed")
        rows = around.detach().to(device, torch.float64)
    key, step = philox_key(seed, device), torch.zeros((), dtype=torch.int64, device=device)
    largest = torch.full((), -math.inf, dtype=torch.float64, device=device)
    total, squares = torch.zeros_like(largest), torch.zeros_like(largest)
    for start in range(0, n, chunk):
        index = torch.arange(start, min(start + chunk, n), device=device)
        x = std * philox_normal(key, index, step, (dim,), Stream.INITIAL)
        if rows is not None:
            u = philox_uniform(key, index, step, (2,), Stream.NOISE_LEVEL)
            row = (u[:, 1].to(torch.float64) * len(rows)).long().clamp(max=len(rows) - 1)
            near = rows[row].to(x.dtype) + bandwidth / std * x
            x = torch.where(u[:, :1] <= BROAD_SHARE, x, near)
        x = x.to(dtype)
        log_proposal = _log_gaussian(x.to(torch.float64).square().sum(1), dim, std)
        if rows is not None:
            log_near = _log_near(x.to(torch.float64), rows, bandwidth)
            log_proposal = torch.logaddexp(
                log_proposal + math.log(BROAD_SHARE), log_near + math.log(1 - BROAD_SHARE)
            )
        log_weight = log_density(x).to(torch.float64) - log_proposal
        largest_now = torch.maximum(largest, log_weight.max())
        if bool(largest_now.isnan()) or float(largest_now) == math.inf:
            raise ValueError(
                f"the log density is NaN or +inf at a sample in [{start}, {start + len(index)})"
            )
        if float(largest_now) == -math.inf:
            continue
        shrink = (largest - largest_now).exp()
        weight = (log_weight - largest_now).exp()
        total = total * shrink + weight.sum()
        squares = squares * shrink.square() + weight.square().sum()
        largest = largest_now
    if not float(total) > 0:
        raise ValueError(f"the density is 0 at all {n} samples")
    size = float(total.square() / squares)
    return LogNormaliser(
        value=float(largest + total.log()) - math.log(n),
        standard_error=math.sqrt(max(1 / size - 1 / n, 0.0)),
        effective_sample_size=size,
        n=n,
    )


def _log_gaussian(squared: Tensor, dim: int, std: float) -> Tensor:
    return -0.5 * squared / std**2 - dim * (math.log(std) + 0.5 * math.log(2 * math.pi))


def _log_near(x: Tensor, rows: Tensor, bandwidth: float) -> Tensor:
    """Return the log density of the mean of N(row, bandwidth^2 I) at x (B, D): (B,)."""
    # -|x - r|^2 / (2 h^2) is -|x|^2 / (2 h^2), which no row changes, plus a product and an offset.
    result = x.new_full((len(x),), -math.inf)
    for block in rows.split(_ROWS_AT_ONCE):
        offset = -0.5 * (block / bandwidth).square().sum(1)
        log_block = torch.addmm(offset, x, block.T, alpha=1 / bandwidth**2)
        result = torch.logaddexp(result, torch.logsumexp(log_block, 1))
    return result - math.log(len(rows)) + _log_gaussian(x.square().sum(1), x.shape[1], bandwidth)
