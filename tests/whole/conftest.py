"""The grid whose every number the oracles compute again."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import FEW_BLOCKS

from ablations import reproduce
from scorekit.files import read_sealed_json, write_sealed_json
from scorekit.models.score_network import ARCHITECTURES

# Two variants that differ in every group, and two other ways to sample one of them.
_GRID = """
name = "whole"
variants = ["ncsn", "ncsnv2"]
rows = [
    {variant = "ncsnv2", sampler = "consistent"},
    {variant = "ncsnv2", sampling_levels = 5, n_steps_each = 3},
]
budget = "quick"
[set]
image_size = 8
width = 2
iterations = 12
batch_size = 8
learning_rate = 1e-2
ema_momentum = 0.8
snapshot_interval = 6
test_interval = 4
sigma_end = 1.0
coverage = 0.001
n_steps_each = 2
n_selection = 12
n_final = 20
n_loss = 90
n_dump = 7
sampling_batch = 12
"""


def _photographs(folder):
    """Write RGB images of four squares, dark ones to train and bright ones to test."""
    random = np.random.default_rng(0)
    for split, count, low, high in (("train", 40, 0, 160), ("test", 30, 96, 256)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(low, high, (2, 2, 3)).repeat(4, 0).repeat(4, 1)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"{i}.png")


@pytest.fixture(scope="module")
def few_blocks():
    """Networks of few blocks: what is computed with their weights is not what a block computes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "32-64", FEW_BLOCKS)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, few_blocks):
    """Two folders of finished grids: all rows in float32, and one of them in bfloat16.

    Digits of one channel are trained with dequantisation, where there is no Technique 3, and
    photographs of three with flips; ``--reference test``. The last NCSNv2 has neighbours, and pairs
    of samples that are interpolated. In bfloat16 the two denoise settings choose two snapshots.
    """
    from ablations import launch
    from ablations.command_line import make_plan, parse_arguments
    from ablations.pipeline.jobs import InterpolateJob, NeighboursJob, shown_jobs
    from ablations.studies.ncsnv2 import resolution

    folder = tmp_path_factory.mktemp("whole")
    _photographs(folder / "photos")
    (folder / "grid.toml").write_text(_GRID)
    cells = "digits/ncsn*/seed0,digits/ncsnv2/seed1,imagefolder:photos/ncsnv2/*"
    arguments = ["--grid", str(folder / "grid.toml"), "--executor", "inline", "--device", "cpu"]
    arguments += ["--threads", "1", "--data-root", str(folder / "data"), "--reference", "test"]
    every = [*arguments, "--datasets", f"digits,imagefolder:{folder / 'photos'}", "--seeds", "2"]
    every += ["--out", str(folder / "fp32"), "--only", cells]
    half = [*arguments, "--datasets", "digits", "--only", "*/ncsnv2/*", "--set", "precision=bf16"]
    half += ["--out", str(folder / "bf16")]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        # NCSN's own hundred steps at each noise scale would take a minute.
        few = dataclasses.replace(resolution.NCSN_LADDER, n_steps_each=3)
        patch.setattr(resolution, "NCSN_LADDER", few)
        patch.setattr(launch, "refresh_report", lambda out, build: out)  # half of the time
        assert launch.main(every) == 0
        assert launch.main(half) == 0
        _part_the_choices(folder / "bf16")
        assert launch.main(half) == 0
        for flags in (every, half):
            plan = make_plan(parse_arguments(flags))
            chosen = [cell for cell in plan.units if cell.label == "NCSNv2"]
            for kind in (InterpolateJob, NeighboursJob):
                jobs = shown_jobs(kind, chosen[-1:], snapshot="selected")
                assert reproduce.run_more(plan, jobs) == {}
    torch.set_num_threads(threads)
    return folder / "fp32", folder / "bf16"


def _part_the_choices(out):
    """Let the denoised samples of the snapshot chosen so far be far off: another is chosen then."""
    paths = {}
    for path in out.glob("stages/distance/*/result.json"):
        record = read_sealed_json(path)
        last = out / "stages" / "features" / record["needs"][-1] / "settings.json"
        denoised = json.loads(last.read_text())["denoise"]
        if denoised and len(record["needs"]) == 2:
            paths[record["result"]["distance"]] = path, record
    path, record = paths[min(paths)]
    record["result"]["distance"] = 1e9
    write_sealed_json(path, record)
