"""The machine: its processor, and the conditions of what is measured on it."""

import ctypes
import gc
import os
import platform
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


class PeakMemory:
    """The most memory that a process has held since this was made, whatever it held before.

    On CUDA what torch has allocated on ``device``; on a CPU, where Linux lets the mark be set back,
    what the process has resident, libraries among it. Only the one made last is right.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device.startswith("cuda"):
            self._known = True
            torch.cuda.reset_peak_memory_stats(device)
            return
        gc.collect()
        _return_freed_memory()
        try:
            # man 5 proc: 5 sets the peak resident set size to the present one.
            Path("/proc/self/clear_refs").write_text("5")
            # Some sandboxes take the write and do nothing.
            self._known = _resident("VmHWM") - _resident("VmRSS") < 2**24
        except (OSError, KeyError):
            self._known = False

    def bytes(self) -> int | None:
        """Return the peak so far, or None where the system does not say."""
        if not self._known:
            return None
        if self.device.startswith("cuda"):
            return int(torch.cuda.max_memory_allocated(self.device))
        return _resident("VmHWM")


def _resident(name: str) -> int:
    """Return an entry of /proc/self/status in bytes; OSError or KeyError where there is none."""
    lines = Path("/proc/self/status").read_text().splitlines()
    entries = dict(line.split(":", 1) for line in lines)
    return 1024 * int(entries[name].split()[0])


def _return_freed_memory() -> None:
    """Have glibc give freed memory back: kept, it would count for who comes next."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # another C library


def conditions(
    device: str, *, threads: int, compile: bool, peak_memory: int | None, processes: int = 1
) -> dict[str, Any]:
    """Return software and hardware of a measurement, beside its ``peak_memory`` in bytes.

    ``processes`` of them, each with a device of this kind, worked together.
    """
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{cpu_name()}, {threads} thread(s)"
    return {
        "device": name if processes == 1 else f"{processes} × {name}",
        "peak_memory_bytes": peak_memory,
        "compile": compile,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def usable_cores() -> int:
    """Return the number of cores that this process may run on, or a container's quota of them.

    A quota is rounded down, to at least one: threads beyond it only stop one another.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *map(int, _quotas(Path("/")))]))


def default_threads() -> int:
    """Return ``OMP_NUM_THREADS`` where the environment has it, otherwise :func:`usable_cores`."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(asked) if asked.isdecimal() and int(asked) > 0 else usable_cores()


def _quotas(root: Path) -> list[float]:
    """Return how many cores' time each Linux control group around this process allows it.

    ``root`` is the file system's. Both versions of control groups are read; within a container the
    groups' own paths may not be there, and then what is mounted at the top is its own.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    mount, found = root / "sys/fs/cgroup", []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if controllers == "":
            tops, read = [mount, mount / "unified"], _quota_v2
        elif "cpu" in names:
            tops, read = [mount / "cpu", mount / controllers], _quota_v1
        else:
            continue
        group = Path(path.lstrip("/"))
        for top in tops:
            for folder in (top / group, *(top / parent for parent in group.parents), top):
                try:
                    quota = read(folder)
                except (OSError, ValueError):
                    continue
                if quota is not None:
                    found.append(quota)
    return found


def _quota_v2(folder: Path) -> float | None:
    quota, period = (folder / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
