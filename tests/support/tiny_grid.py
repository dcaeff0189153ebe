"""Launching the grid of bench/tiny.toml, which runs in seconds, and what its results are."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from places import ROOT

from scorekit.checkpoints.tensors import load_tensors

TOML = ROOT / "bench" / "tiny.toml"

#: Kinds of stages whose results are no more than numbers that do not depend on time or memory.
_NUMBERS = ("distance", "quality", "baseline", "features")


def launch_command(folder: Path, *flags: str) -> list[str]:
    """Return the command line that launches the grid in ``folder/out``."""
    return [
        *(sys.executable, "-m", "ablations.launch", "--grid", str(TOML)),
        *("--out", str(folder / "out"), *flags),
    ]


def launch(folder: Path, *flags: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Launch the grid in its own process and wait for it."""
    return subprocess.run(
        launch_command(folder, *flags),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def environment() -> dict[str, str]:
    """Return this process's environment without a GPU."""
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def results(out: Path) -> dict[str, Any]:
    """Everything in the output folder that an undisturbed run must reproduce, bit for bit."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(path.relative_to(out))
        if ".corrupt-" in name or ".tmp" in name:
            continue
        if path.suffix in (".npy", ".npz", ".png") and not name.startswith("report"):
            found[name] = path.read_bytes()
        if path.name.startswith("snapshot-") and path.suffix == ".pt":
            # The tensors' bytes: torch.save's own envelope is not the same twice.
            found[name] = {
                f"{weights}.{key}": value.numpy().tobytes()
                for weights, state in load_tensors(path).items()
                for key, value in state.items()
            }
        if path.name == "result.json" and path.parent.parent.name in _NUMBERS:
            found[name] = json.loads(path.read_text())["result"]
        if path.name == "grid.json":
            found[name] = json.loads(path.read_text())
    return found
