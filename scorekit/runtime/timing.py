"""Paired timing: candidate and reference by turns in one process, judged by their ratio.

A machine's mood (frequency, neighbours, temperature) changes both alike from one moment to the
next, so the ratio of two timings taken one after the other says more than either of them.
"""

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch

#: A timing takes at least this long, by repetition: far above the clock's and the launch's jitter.
MIN_TIMING_S = 2e-3


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians over rounds in seconds per call; ``ratio`` is candidate / reference.

    The ratio is the median of the rounds' own, [ratio_low, ratio_high] its 95 % confidence
    interval. First calls, compilation included, are in no median; ``cold`` says that the
    candidate's found nothing in the compiler's cache.
    """

    candidate_s: float
    reference_s: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    rounds: int
    candidate_calls: int  # per timing
    reference_calls: int | None = None
    first_candidate_s: float
    first_reference_s: float | None = None
    cold: bool


def measure(
    candidate: Callable[[], Any],
    reference: Callable[[], Any] | None,
    device: torch.device,
    *,
    budget_s: float = 3.0,
    max_rounds: int = 60,
) -> Timing:
    """Time two functions by turns, the order flipped each round, device synchronised.

    The number of rounds is even, so that both orders count alike, and fills ``budget_s``; six at
    least, which give a 95 % interval. Without a reference the candidate is timed alone, twice at
    least.
    """
    functions = [candidate] if reference is None else [candidate, reference]
    before = _cache_misses()
    first_candidate = time_calls(candidate, 1, device)
    cold = _cache_misses() > before
    first = [first_candidate] + [time_calls(f, 1, device) for f in functions[1:]]
    estimates = [_settled(f, device) for f in functions]
    calls = [max(1, math.ceil(MIN_TIMING_S / max(t, 1e-7))) for t in estimates]
    round_s = sum(t * n for t, n in zip(estimates, calls, strict=True))
    least = 2 if reference is None else 6
    rounds = 2 * math.ceil(min(max(budget_s / round_s, least), max_rounds) / 2)
    times: list[list[float]] = [[] for _ in functions]
    with without_collection():
        for i in range(rounds):
            order = range(len(functions))
            for at in order if i % 2 == 0 else reversed(order):
                times[at].append(time_calls(functions[at], calls[at], device))
    common: dict[str, Any] = {
        "candidate_s": median(times[0]),
        "rounds": rounds,
        "candidate_calls": calls[0],
        "first_candidate_s": first[0],
        "cold": cold,
    }
    if reference is None:
        return Timing(**common)
    ratios = [a / b for a, b in zip(*times, strict=True)]
    low, high = median_interval(ratios)
    return Timing(
        **common,
        reference_s=median(times[1]),
        ratio=median(ratios),
        ratio_low=low,
        ratio_high=high,
        reference_calls=calls[1],
        first_reference_s=first[1],
    )


def time_by_turns(
    functions: Mapping[str, Callable[[], Any]], device: torch.device, *, rounds: int
) -> dict[str, list[float]]:
    """Return each function's seconds per call in each of ``rounds``, in which all run by turns.

    The order is reversed each round. Timings of one index are of one moment, so that their ratios
    can be taken. Each function is called once or more before.
    """
    estimates = {name: _settled(function, device) for name, function in functions.items()}
    calls = {name: max(1, math.ceil(MIN_TIMING_S / max(t, 1e-7))) for name, t in estimates.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    with without_collection():
        for i in range(rounds):
            for name in list(functions) if i % 2 == 0 else reversed(list(functions)):
                times[name].append(time_calls(functions[name], calls[name], device))
    return times


def _settled(function: Callable[[], Any], device: torch.device) -> float:
    second = time_calls(function, 1, device)
    # A short second call may still have chosen an algorithm; in a long one that does not show.
    return second if second > 0.5 else min(second, time_calls(function, 1, device))


def time_calls(function: Callable[[], Any], n: int, device: torch.device) -> float:
    """Return the seconds per call of ``n`` calls in a row, the device idle before and after."""
    synchronise(device)
    started = perf_counter()
    for _ in range(n):
        function()
    synchronise(device)
    return (perf_counter() - started) / n


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def median_interval(values: Sequence[float], error: float = 0.05) -> tuple[float, float]:
    """Return the order statistics between which the median lies with probability >= 1 - error.

    From the binomial distribution, whatever the values' own; with fewer than six values their
    range, whose probability is smaller.
    """
    n = len(values)
    outside = rank = 0
    while 2 * (outside + math.comb(n, rank)) <= error * 2**n:
        outside += math.comb(n, rank)
        rank += 1
    ordered = sorted(values)
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[n - rank]


def _cache_misses() -> int:
    return int(torch._dynamo.utils.counters["inductor"]["fxgraph_cache_miss"])


@contextmanager
def without_collection() -> Iterator[None]:
    """Keep the garbage collector from running within a timing."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
