"""What several test files share."""

import os

import pytest
import torch
from tiny_grid import TOML

if not torch.cuda.is_available():
    # Read when the kernels are defined, hence before any of them is imported.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of an undisturbed run of the tiny grid in this process, results in ``out``."""
    from ablations.launch import main

    folder = tmp_path_factory.mktemp("grid")
    arguments = ["--grid", str(TOML), "--out", str(folder / "out"), "--executor", "inline"]
    threads = torch.get_num_threads()
    assert main([*arguments, "--threads", "1", "--device", "cpu"]) == 0
    torch.set_num_threads(threads)
    return folder
