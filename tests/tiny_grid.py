"""A grid that runs in seconds: group (1,2,4), three noise scales, six iterations."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

TOML = """
name = "tiny"
variants = ["ncsn_124", "ncsn_1245", "ncsnv2"]
budget = "quick"

[set]
width = 2
iterations = 6
batch_size = 4
snapshot_interval = 3
test_interval = 2
n_levels = 3
n_steps_each = 2
n_selection = 4
n_final = 6
n_dump = 3
sampling_batch = 4
"""


def write_grid(folder: Path) -> Path:
    """Write the grid's TOML file into a folder and return its path."""
    path = folder / "tiny.toml"
    path.write_text(TOML)
    return path


def launch_command(folder: Path, *flags: str) -> list[str]:
    """Return the command line that launches the grid in ``folder/out``."""
    grid = write_grid(folder)
    return [
        *(sys.executable, "-m", "ablations.launch", "--grid", str(grid)),
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
