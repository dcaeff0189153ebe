"""The log normaliser of an energy model by importance sampling, with how far it can be trusted."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.philox import Stream, philox_key, philox_normal


@dataclass(frozen=True, kw_only=True)
class LogNormaliser:
    """An estimate of log Z from ``n`` weighted samples.

    ``effective_sample_size`` = (sum w)^2 / sum w^2 lies in [1, n]; ``standard_error`` =
    sqrt(1 / effective_sample_size - 1 / n) is that of ``value`` by the delta method, which says
    little itself where the effective sample size is small.
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
    seed: int = 0,
    chunk: int = 4096,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LogNormaliser:
    """Estimate the log integral of exp(log_density) over R^dim with samples of N(0, std^2 I).

    ``log_density`` takes (B, dim) of ``dtype`` with B <= ``chunk`` and returns (B,); memory does
    not grow with ``n`` < 2^32. Sums are float64. Sample i is the same in every chunk size. The
    defaults are those of the authors' experiments with deep kernel exponential families. Raises
    ValueError where a log density is NaN or +inf, or all are -inf.
    """
    for name, count in (("dim", dim), ("n", n), ("chunk", chunk)):
        if not 1 <= count < 2**32:
            raise ValueError(f"{name} = {count} must lie in [1, 2**32)")
    if not (std > 0 and math.isfinite(std)):
        raise ValueError(f"std = {std} must be positive and finite")
    key, step = philox_key(seed, device), torch.zeros((), dtype=torch.int64, device=device)
    largest = torch.full((), -math.inf, dtype=torch.float64, device=device)
    total, squares = torch.zeros_like(largest), torch.zeros_like(largest)
    for start in range(0, n, chunk):
        index = torch.arange(start, min(start + chunk, n), device=device)
        z = philox_normal(key, index, step, (dim,), Stream.INITIAL).to(dtype)
        log_proposal = -0.5 * z.to(torch.float64).square().sum(1)
        log_weight = log_density(std * z).to(torch.float64) - log_proposal
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
        raise ValueError(f"the density is 0 at all {n} samples of N(0, {std}^2 I)")
    constant = dim * (math.log(std) + 0.5 * math.log(2 * math.pi))
    size = float(total.square() / squares)
    return LogNormaliser(
        value=float(largest + total.log()) - math.log(n) + constant,
        standard_error=math.sqrt(max(1 / size - 1 / n, 0.0)),
        effective_sample_size=size,
        n=n,
    )
