"""Where a measurement was taken: device class, versions, commit, and the peaks of the roofline."""

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kernels.precision import float32_precision
from scorekit.runtime.machine import cpu_facts, cpu_model
from scorekit.runtime.timing import time_calls

_ROOT = Path(__file__).parents[1]
# Instruction sets that decide which code Inductor and oneDNN generate.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve", "bf16")
_COPY_BYTES = tuple(2**exponent for exponent in (18, 20, 22, 24, 26, 28))


def default_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_class(device: torch.device) -> str:
    """Return the name under which ratios are comparable: GPU model, or CPU model and threads.

    Hypervisors shorten a CPU's model name, so family, model number and vector instructions are
    part of it; so are the threads in use, on which ratios depend.
    """
    if device.type != "cpu":
        return f"{device.type}: {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"cpu: {_cpu_model()}, {threads} thread{'s' * (threads != 1)}"


def slug(name: str) -> str:
    """Return the device class as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def conditions(device: torch.device) -> dict[str, Any]:
    """Return device class, threads, versions and commit, as JSON values."""
    return {
        "device": device_class(device),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "cuda": torch.version.cuda,
        "commit": commit(),
    }


def commit(root: Path = _ROOT) -> str:
    """Return the checkout's commit, "+changes" behind it where files differ; else "unknown"."""
    try:
        head = _git(root, "rev-parse", "HEAD").strip()
        # A saved result must not make the next one look as if the code had changed.
        changed = _git(root, "status", "--porcelain", "--", ".", ":!bench/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed.strip() else "")


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Measured limits of a device.

    ``copy`` maps a number of bytes read and written to bytes per second: what fits in a cache is
    copied faster than memory allows. Matrix products give ``fp32`` and ``bf16`` in FLOP/s.
    """

    copy: dict[int, float]
    fp32: float
    bf16: float

    def __or__(self, other: "Peaks") -> "Peaks":
        """Return the higher of each: a neighbour's load may have lowered one measurement."""
        copy = {size: max(rate, other.copy[size]) for size, rate in self.copy.items()}
        return Peaks(copy=copy, fp32=max(self.fp32, other.fp32), bf16=max(self.bf16, other.bf16))

    def bandwidth(self, n_bytes: int) -> float:
        """Return bytes per second of a copy of this size, or the next larger one measured."""
        sizes = sorted(self.copy)
        return self.copy[next((size for size in sizes if size >= n_bytes), sizes[-1])]

    def bound_s(self, bytes_moved: int | None, flops: int | None, precision: str) -> float | None:
        """Return the roofline: the shortest time that these bytes and FLOPs can take, if known."""
        bounds = []
        if bytes_moved:
            bounds.append(bytes_moved / self.bandwidth(bytes_moved))
        if flops:
            bounds.append(flops / (self.bf16 if precision == "bf16" else self.fp32))
        return max(bounds, default=None)


def measure_peaks(device: torch.device, *, matrix: int = 2048, repetitions: int = 5) -> Peaks:
    """Return the peaks of ``device``: the best of several copies, and of matrix products."""

    def best(function: Any, calls: int = 1) -> float:
        function()
        return min(time_calls(function, calls, device) for _ in range(repetitions))

    copy = {}
    for size in _COPY_BYTES:
        source = torch.ones(size // 8, device=device)
        target = torch.empty_like(source)
        calls = max(1, 2**24 // size)
        copy[size] = size / best(lambda s=source, t=target: t.copy_(s), calls)
    rate = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(matrix, matrix, device=device, dtype=dtype)
        with float32_precision():
            rate[dtype] = 2 * matrix**3 / best(lambda a=a: a @ a)
    return Peaks(copy=copy, fp32=rate[torch.float32], bf16=rate[torch.bfloat16])


def _cpu_model() -> str:
    facts = cpu_facts()
    if not facts:
        return cpu_model()
    flags = facts.get("flags", facts.get("Features", "")).split()
    known = " ".join(flag for flag in _FLAGS if flag in flags)
    family, model = facts.get("cpu family", "?"), facts.get("model", "?")
    return f"{cpu_model()} (family {family} model {model}; {known or 'no vector flags'})"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
