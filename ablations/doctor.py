"""``scorekit doctor``: what this machine can do, each line with what is missing for more."""

import argparse
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from ablations.engine.surroundings import use_any_terminal
from kernels.dispatch import unavailable_reason
from scorekit.metrics.spaces import WEIGHTS
from scorekit.runtime.compilation import compile_unavailable_reason
from scorekit.runtime.machine import cpu_name, usable_cores

_PACKAGES = ("torch", "triton", "numpy", "scipy", "pandas", "torch-fidelity", "submitit")


def findings() -> Iterator[tuple[str, str]]:
    """Yield what was looked at, and what was found."""
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"
    yield "cpu", f"{cpu_name()}; {usable_cores()} usable"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield "cuda", ", ".join(names)
    else:
        yield "cuda", "no device; everything runs on the CPU"
    for device in ("cuda", "cpu"):
        reason = unavailable_reason(device)
        if device == "cuda" and not torch.cuda.is_available():
            reason = reason or "no device"
        said = "Triton kernels" if reason is None else f"plain torch: {reason}"
        yield f"kernels on {device}", said
    reason = compile_unavailable_reason()
    yield "torch.compile", "works on this CPU" if reason is None else f"eager instead: {reason}"
    weights = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
    yield "feature spaces", f"{', '.join(weights)}; Inception with --inception-weights PATH"
    for program, use in (
        ("sbatch", "--executor slurm"),
        ("pdflatex", "tables as LaTeX, to look at"),
    ):
        found = shutil.which(program)
        yield program, found if found else f"not on PATH (needed for {use})"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; returns 0."""
    parser = argparse.ArgumentParser(
        prog="scorekit doctor", description="What this machine can do."
    )
    parser.parse_args(argv)
    for name, found in findings():
        print(f"{name:<16} {found}", flush=True)
    return 0


if __name__ == "__main__":
    use_any_terminal()
    sys.exit(main())
