"""``python -m scorekit.checkpoints``: what it prints, and its exit codes."""

import subprocess
import sys

import pytest
import torch
from places import ROOT

from scorekit.checkpoints.__main__ import main
from scorekit.checkpoints.export import load_exported
from scorekit.checkpoints.tensors import save_tensors


@pytest.mark.parametrize(("flags", "value"), [([], 2.0), (["--weights", "raw"], 1.0)])
def test_a_snapshot_is_exported(tmp_path, capsys, flags, value):
    snapshot, out = tmp_path / "snapshot-0000003.pt", tmp_path / "new" / "a.safetensors"
    save_tensors(snapshot, {"raw": {"w": torch.ones(2)}, "ema": {"w": 2 * torch.ones(2)}})
    assert main(["export", str(snapshot), str(out), *flags]) == 0
    weights = "raw" if flags else "ema"
    assert capsys.readouterr().out == f"{out}: the {weights} weights of {snapshot}\n"
    loaded, metadata = load_exported(out)
    assert torch.equal(loaded["w"], torch.full((2,), value)) and metadata["weights"] == weights


def test_bad_input_is_one_line(tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    (tmp_path / "broken.pt").write_bytes(b"x")
    for name in ("absent.pt", "broken.pt"):
        assert main(["export", str(tmp_path / name), str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line
    assert not out.exists()


@pytest.mark.slow
def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "scorekit.checkpoints", "export", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--weights" in done.stdout
