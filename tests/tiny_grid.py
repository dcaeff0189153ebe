"""Launching the grid of bench/tiny.toml, which runs in seconds."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

TOML = ROOT / "bench" / "tiny.toml"


def launch_command(folder: Path, *flags: str) -> list[str]:
    """Return the command line that launches the grid in ``folder/out``."""
    return [
        *(sys.executable, "-m", "ablations.launch", "--grid", str(TOML)),
        *("--out", str(folder / "out"), *flags),
    ]


def launch(folder: Path, *flags: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
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
