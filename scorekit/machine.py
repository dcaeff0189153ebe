"""The machine: its processor, and the conditions of what is measured on it."""

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import torch


def cpu_facts() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo; empty where there is no such file."""
    facts: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return facts
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return facts


def cpu_model() -> str:
    """Return the processor's name, as the system gives it."""
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_name() -> str:
    """Return the processor's name and its number of cores."""
    return f"{cpu_model()}, {os.cpu_count()} cores"


def conditions(device: str, *, threads: int, compile: bool, processes: int = 1) -> dict[str, Any]:
    """Return software and hardware of a measurement, and its process's peak memory in bytes.

    ``processes`` of them, each with a device of this kind, worked together.
    """
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        name = f"{cpu_name()}, {threads} thread(s)"
        # Kilobytes, except on macOS, which counts bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024
    return {
        "device": name if processes == 1 else f"{processes} × {name}",
        "peak_memory_bytes": int(peak),
        "compile": compile,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
