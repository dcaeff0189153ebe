"""The files of a finished grid, found by what their settings and inputs say.

Imports nothing of the code under test but the stored data's reader.
"""

import itertools
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from scorekit.data.store import open_store


@dataclass
class Stage:
    folder: Path
    kind: str
    settings: dict
    needs: list
    result: dict


class Grid:
    """A finished grid's files; cells are the records of its ``grid.json``."""

    def __init__(self, out):
        self.out = Path(out)
        record = json.loads((self.out / "grid.json").read_text())
        self.cells, self.data_root = record["cells"], self.out / record["data_root"]
        self.stages = {}
        for path in [*self.out.glob("stages/*/*"), *self.data_root.glob("reference/*")]:
            settings = json.loads((path / "settings.json").read_text())
            result = json.loads((path / "result.json").read_text())
            kind, needs = settings.pop("kind"), result["needs"]
            self.stages[path.name] = Stage(path, kind, settings, needs, result["result"])
        self.data = cache(lambda store: open_store(self.data_root / store))

    def stage(self, kind, needs, **settings):
        """The one finished stage with these inputs and settings."""
        needs = [need.folder.name for need in needs]
        found = [
            s
            for s in self.stages.values()
            if (s.kind, s.needs) == (kind, needs) and settings.items() <= s.settings.items()
        ]
        (one,) = found
        return one

    def train(self, cell):
        # What came later, and is as the papers have it here, is no part of a training's name.
        later = ("ema_profiles", "noise_levels", "loss_weights", "conditioning")
        settings = {name: value for name, value in cell["train"].items() if name not in later}
        return self.stage("train", [], data=cell["data"]["fingerprint"], **settings)

    def samples(self, cell, iteration, n):
        """The stages of the first ``n_selection`` samples of a snapshot, and of those up to n."""
        ends = [0, cell["n_selection"], n][: 2 + (n > cell["n_selection"])]
        settings = {"iteration": iteration, "seed": cell["seed"], "sampler": cell["sampler"]}
        settings |= {"weights": weights(cell), "precision": cell["train"]["precision"]}
        settings |= {"n_levels": cell["sampling_levels"], "n_steps_each": cell["n_steps_each"]}
        settings["step_size"] = cell["step_size"]
        need = [self.train(cell)]
        bounds = itertools.pairwise(ends)
        return [self.stage("sample", need, start=a, stop=b, **settings) for a, b in bounds]

    def images(self, stages, denoise):
        """uint8 (n, C, H, W) of sample stages, one after another."""
        name = "denoised.npy" if denoise else "last.npy"
        return np.concatenate([np.load(stage.folder / name) for stage in stages])

    def real(self, cell, split):
        """Real images in the order in which they are measured: a permutation by Philox(0)."""
        images = getattr(self.data(cell["data"]["store"]), split)
        return images[np.random.Generator(np.random.Philox(0)).permutation(len(images))]

    def measured(self, kind, cell, iteration, denoise, n):
        """The distance or quality stage of the first n samples."""
        need = [
            self.stage("features", [s], denoise=denoise) for s in self.samples(cell, iteration, n)
        ]
        data = {"split": cell["reference"], "data": cell["data"]["fingerprint"]}
        return self.stage(kind, [self.stage("reference", [], **data), *need])


def weights(cell):
    return "ema" if cell["variant"]["ema"] else "raw"


def evaluations(cell):
    """Score evaluations per sample, the denoising step's among them."""
    levels = cell["sampling_levels"] - (cell["sampler"] == "consistent")
    return levels * cell["n_steps_each"] + 1
