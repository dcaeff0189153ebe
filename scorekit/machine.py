"""What the system says of its processor."""

import os
import platform
from pathlib import Path


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
