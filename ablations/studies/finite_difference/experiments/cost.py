"""What the trials of cost measure: a step of every objective in every way, in time and memory."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ablations.studies.finite_difference.experiments.learning import Found, Progress
from kernels.philox import Stream, philox_key, philox_normal
from scorekit.models.energy import ConvEnergy, MLPEnergy
from scorekit.models.score_network import ScoreNetwork
from scorekit.objectives.directions import projections
from scorekit.objectives.score_matching import (
    WAYS,
    ModelKind,
    Objective,
    Way,
    annealed_score_matching_loss,
    needs_projection,
    score_matching_loss,
)
from scorekit.runtime.compilation import compile_unavailable_reason, compiled
from scorekit.runtime.timing import median_interval, time_by_turns
from scorekit.techniques.noise_scales import geometric_sigmas

REFERENCE = "forward and backward"
#: Exact score matching takes as many second derivatives as there are dimensions.
MAX_EXACT_DIM = 100
_SIGMA = 0.3
_NCSN_SIGMAS = geometric_sigmas(1.0, 0.01, 10)  # NCSN's own (Song & Ermon 2019, Sec. 5)


def peak_bytes(
    function: Callable[[], Any], device: torch.device, clear: Callable[[], Any] = lambda: None
) -> int:
    """Return the most bytes that were allocated at once as the function ran, beyond those before.

    By the allocator's own count, of eager and of compiled code and of scratch space within an
    operation, such as a convolution's reordered copies. The function runs once before, so that what
    is compiled, chosen or kept at a first call is not counted; ``clear`` frees what it left behind.
    """
    function()
    clear()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    # Else the profiler reports its own beginning and end, and that there is no GPU.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    assert recorded.profiler is not None
    events = recorded.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    # Stable: an allocation and a release of one nanosecond stay in their order.
    changes.sort(key=lambda change: change[0])
    return max(accumulate((size for _, size in changes), initial=0))


def cost(settings: dict[str, Any], directory: Path, progress: Progress) -> Found:
    """Time forward and backward of every objective, by turns, and measure their peak memory.

    The model "ncsn" is the source's case: conditional, SSM and FD-SSM at the noise scales of NCSN,
    and whole training steps, whose backward pass an update by Adam follows. Its moments are there
    before, and in no peak.
    Ratios are medians over the rounds of ratios within a round, with their 95 % intervals.
    """
    device = torch.device(settings["device"])
    model, kind, x = _model(settings)
    key = philox_key(0, device)
    index, step = torch.arange(len(x), device=device), torch.tensor(0, device=device)
    v = projections("rademacher", key, index, step, tuple(x.shape[1:]))
    noise = philox_normal(key, index, step, tuple(x.shape[1:]), Stream.PERTURBATION)

    training = settings["model"] == "ncsn"
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def backward(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad(set_to_none=True)
            loss().backward()
            if training:
                optimiser.step()

        return run

    def loss_of(objective: Objective, way: Way) -> Callable[[], Tensor]:
        if training:
            return lambda: annealed_score_matching_loss(
                model,
                x,
                sigmas=_NCSN_SIGMAS.to(device),
                noise_index=index % len(_NCSN_SIGMAS),
                noise=noise,
                objective=objective,
                way=way,
                projection=v,
            ).mean()
        sliced, denoising = needs_projection(objective), objective in ("dsm", "fd_dsm")
        return lambda: score_matching_loss(
            _samples_only(model, kind),
            x,
            objective=objective,
            energy=kind == "energy",
            way=way,
            projection=v if sliced else None,
            noise=noise if denoising else None,
            sigma=_SIGMA if denoising else None,
        ).mean()

    plain = _samples_only(model, kind)
    functions = {REFERENCE: backward(lambda: plain(x).square().sum())}
    rows: dict[str, dict[str, Any]] = {REFERENCE: {"objective": None, "way": None, "mode": "eager"}}
    left_out: list[dict[str, Any]] = []
    # Where nothing can be compiled, what asks for it runs eagerly, and is no row of its own.
    uncompiled = None
    if settings["compile"] and device.type == "cpu":
        uncompiled = compile_unavailable_reason()
    for (objective, of), ways in WAYS.items():
        if of != kind or (training and objective not in ("ssm", "fd_ssm")):
            continue
        if objective == "exact_sm" and x[0].numel() > MAX_EXACT_DIM:
            why = f"{x[0].numel():,} second derivatives of each sample"
            left_out.append({"objective": objective, "way": "", "mode": "eager", "why": why})
            continue
        for way in ways:
            for mode in ("eager", "compiled") if settings["compile"] else ("eager",):
                if (objective, way, mode) == ("exact_sm", "double_backward", "compiled"):
                    why = "the compiler would unroll a backward pass for each dimension"
                    absent = {"objective": objective, "way": way, "mode": mode, "why": why}
                    left_out.append(absent)
                    continue
                if mode == "compiled" and uncompiled is not None:
                    absent = {"objective": objective, "way": way, "mode": mode, "why": uncompiled}
                    left_out.append(absent)
                    continue
                name = f"{objective} {way} {mode}"
                loss = compiled(
                    loss_of(objective, way), enable=mode == "compiled", device=device.type
                )
                functions[name] = backward(loss)
                rows[name] = {"objective": objective, "way": way, "mode": mode}
    peaks, total = {}, len(functions)
    for i, (name, function) in enumerate(list(functions.items())):
        try:
            peaks[name] = peak_bytes(function, device, model.zero_grad)
        except Exception as error:  # compilers raise nearly anything, and other rows go on
            if rows[name]["mode"] == "eager":
                raise
            row = rows.pop(name)
            del functions[name]
            left_out.append(
                row | {"why": f"fails compiled ({type(error).__name__}: {_line(error)})"}
            )
        progress(0.3 * (i + 1) / total, f"memory of {name}")
    model.zero_grad(set_to_none=True)
    times = time_by_turns(functions, device, rounds=settings["rounds"])
    reference = times[REFERENCE]
    for name, row in rows.items():
        ratios = [a / b for a, b in zip(times[name], reference, strict=True)]
        low, high = median_interval(ratios)
        row |= {
            "seconds": median(times[name]),
            "ratio": median(ratios),
            "ratio_low": low,
            "ratio_high": high,
            "peak_bytes": peaks[name],
        }
    result = {
        "rows": list(rows.values()),
        "times": times,
        "left_out": left_out,
        "shape": list(x.shape),
        "n_parameters": sum(p.numel() for p in model.parameters()),
    }
    return result, []


def _model(settings: dict[str, Any]) -> tuple[nn.Module, ModelKind, Tensor]:
    """Return the model of a trial, what it gives, and a batch in the range of its data."""
    device, width = settings["device"], settings["width"]
    generator = torch.Generator().manual_seed(0)
    model: nn.Module
    shape: tuple[int, ...]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if settings["model"] == "mlp":
            model, kind, shape = MLPEnergy(64, width, 3), "energy", (64,)
        elif settings["model"] == "conv":
            model, kind = ConvEnergy(3, 32, width, n_blocks=2, n_halvings=0), "energy"
            shape = (3, 32, 32)
        elif settings["model"] == "ncsn":
            model = ScoreNetwork("32-64", _NCSN_SIGMAS, conditional=True, channels=3, width=width)
            kind, shape = "score", (3, 32, 32)
        else:
            model = ScoreNetwork("32-64", torch.tensor([_SIGMA]), channels=3, width=width)
            kind, shape = "score", (3, 32, 32)
    x = torch.rand(settings["batch_size"], *shape, generator=generator).to(device)
    return model.to(device), kind, x  # type: ignore[return-value]


def _line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:200]


def _samples_only(model: nn.Module, kind: ModelKind) -> Any:
    if kind == "energy":
        return model
    return lambda x: model(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
