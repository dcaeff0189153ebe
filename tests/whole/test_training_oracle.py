"""The trainer against straight-line code: weights, averages, losses and test losses of whole runs.

Each case changes one setting. The run must come to the oracle's numbers for it and must not come to
those of the run without the change, so a setting that is ignored is noticed by construction.
"""

import dataclasses
import functools
import math
from dataclasses import replace
from types import SimpleNamespace as Run

import numpy as np
import pytest
import torch
import training_oracle

from scorekit.checkpoints.store import snapshot_path
from scorekit.data.store import Dataset
from scorekit.training.networks import load_snapshot
from scorekit.training.settings import TrainSettings
from scorekit.training.trainer import Trainer

# Five epochs of 30 images in batches of 8, which run across their ends; Adam's epsilon is large
# lest a weight whose gradient is a rounding error takes a whole step.
BASE = TrainSettings(
    architecture="32-64",
    width=4,
    conditional=False,
    sigma_begin=2,
    sigma_end=0.1,
    n_levels=6,
    iterations=20,
    batch_size=8,
    learning_rate=1e-3,
    adam_eps=1e-2,
    ema_momentum=0.9,
    snapshot_interval=7,
    test_interval=5,
    seed=3,
)
SHORT = replace(BASE, iterations=5, snapshot_interval=3, test_interval=2)
SLICED = replace(SHORT, objective="ssm", iterations=3)
TOLD = replace(SHORT, conditional=True)
DIFFERENCES = replace(SLICED, objective="fd_ssm_vr")
FAST = replace(BASE, learning_rate=4e-3)
#: Base, its change, and the largest difference that is rounding.
CASES = [
    (BASE, {"iterations": 21}, 2e-6),
    (FAST, {"amsgrad": True}, 2e-6),
    (BASE, {"seed": 2**32 - 1}, 2e-6),
    (SHORT, {"architecture": "96-128", "iterations": 3}, 1e-4),
    (SHORT, {"width": 6}, 2e-6),
    (SHORT, {"conditional": True}, 1e-4),
    (SHORT, {"sigma_begin": 3.0}, 2e-6),
    (SHORT, {"sigma_end": 0.2}, 2e-6),
    (SHORT, {"n_levels": 5}, 2e-6),
    (SHORT, {"batch_size": 37}, 2e-6),  # more than an epoch
    (SHORT, {"learning_rate": 2e-3}, 2e-6),
    (SHORT, {"adam_eps": 3e-2}, 2e-6),
    (SHORT, {"ema_momentum": 0.8}, 2e-6),
    (SHORT, {"flip": False}, 2e-6),
    (SHORT, {"dequantisation": "uniform"}, 2e-6),
    (SHORT, {"snapshot_interval": 4}, 2e-6),
    (SHORT, {"test_interval": 1}, 2e-6),
    (replace(SLICED, iterations=1), {"objective": "exact_sm"}, 1e-5),
    (SLICED, {"objective": "ssm_vr"}, 1e-5),
    (SLICED, {"objective": "fd_ssm"}, 1e-4),
    (SLICED, {"objective": "dsm"}, 1e-5),
    (SLICED, {"projection": "gaussian"}, 1e-5),
    (SLICED, {"projection": "sphere"}, 1e-5),
    (DIFFERENCES, {"objective": "ssm"}, 1e-5),
    (DIFFERENCES, {"objective": "fd_ssm"}, 1e-4),
    (DIFFERENCES, {"projection": "gaussian"}, 1e-4),
    (DIFFERENCES, {"fd_epsilon": 0.5}, 1e-4),
    (SHORT, {"ema_profiles": ("power:0.10", "ramp:0.3")}, 2e-6),
    (replace(SHORT, ema_profiles=("ramp:0.9",)), {"ema_profiles": ("ramp:0.3",)}, 2e-6),
    (SHORT, {"noise_levels": "log_uniform"}, 2e-6),
    (SHORT, {"noise_levels": "log_normal"}, 5e-6),
    (TOLD, {"noise_levels": "log_uniform"}, 1e-4),
    (SLICED, {"noise_levels": "log_normal"}, 1e-5),
    (DIFFERENCES, {"noise_levels": "log_uniform"}, 1e-4),
    (SHORT, {"loss_weights": "min_snr"}, 2e-6),
    (replace(SHORT, noise_levels="log_normal"), {"loss_weights": "equal"}, 2e-6),
    (TOLD, {"conditioning": "edm"}, 1e-4),
    (SHORT, {"conditioning": "none"}, 2e-6),
    (replace(TOLD, conditioning="edm"), {"noise_levels": "log_normal"}, 1e-4),
]


def name_of(base: TrainSettings, change: dict, _) -> str:
    name, value = next(iter(change.items()))
    told = "told-" if base.conditional else ""
    return f"{told}{base.conditioning or base.objective}-{name}-{value}"


def images(side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Bright images to train on and dark ones to test on: mixed up, they show."""
    generator = np.random.default_rng(0)
    train = generator.integers(100, 256, (30, 1, side, side), dtype=np.uint8)
    return train, generator.integers(0, 90, (7, 1, side, side), dtype=np.uint8)


@functools.lru_cache
def expected(settings: TrainSettings, side: int = 8) -> Run:
    return training_oracle.train(settings, *images(side))


def trained(settings: TrainSettings, directory, side: int = 8, **how) -> Run:
    """What a Trainer's files hold in the end."""
    train, test = images(side)
    dataset = Dataset(name="made", train=train, test=test, flip=True, fingerprint="")
    Trainer(settings, dataset, directory, compile=False, **how).run()
    run = Run(raw={}, ema={}, others={}, losses=[], test_losses=[])
    for path in directory.glob("snapshot-*.pt"):
        content, iteration = torch.load(path), int(path.stem.split("-")[1])
        run.raw[iteration], run.ema[iteration] = content.pop("raw"), content.pop("ema")
        run.others |= {(name, iteration): weights for name, weights in content.items()}
    last = torch.load(directory / f"checkpoint-{settings.iterations:07d}.pt")
    run.losses = last["losses"].tolist()
    run.test_losses = [(int(i), loss) for i, loss in last["test_losses"].tolist()]
    for name in ("raw", "ema"):
        for key, value in getattr(run, name)[settings.iterations].items():
            assert torch.equal(last[name][key], value)
    return run


def difference(a: Run, b: Run) -> float:
    """The largest difference: of losses in units of the first one, of weights as they are."""
    if len(a.losses) != len(b.losses) or dict(a.test_losses).keys() != dict(b.test_losses).keys():
        return math.inf
    scale = max(1, abs(a.losses[0]))
    found = [abs(x - y) / scale for x, y in zip(a.losses, b.losses, strict=True)]
    found += [abs(x[1] - y[1]) / scale for x, y in zip(a.test_losses, b.test_losses, strict=True)]
    for mine, theirs in ((a.raw, b.raw), (a.ema, b.ema), (a.others, b.others)):
        if mine.keys() != theirs.keys():
            return math.inf
        for iteration, weights in mine.items():
            other = theirs[iteration]
            if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in other.items()}:
                return math.inf
            found += [float((w - other[name]).abs().max()) for name, w in weights.items()]
    return max(found)


@pytest.mark.parametrize(
    ("base", "change", "rounding"), CASES, ids=[name_of(*case) for case in CASES]
)
def test_a_run_comes_to_the_oracles_numbers(base, change, rounding, tmp_path):
    settings = replace(base, **change)
    side = 4 if settings.objective == "exact_sm" else 8  # it takes a derivative for each pixel
    run = trained(settings, tmp_path, side)
    near, far = difference(expected(settings, side), run), difference(expected(base, side), run)
    assert near < rounding
    assert far > 10 * rounding


def test_bfloat16_comes_to_the_oracles_losses(tmp_path):
    """In the median: now and then float32's rounding tips a number to bfloat16's next."""
    # Weights that hardly move, or each difference would be carried on.
    still = replace(BASE, iterations=7, test_interval=1, learning_rate=1e-6)
    settings = replace(still, precision="bf16")
    run = trained(settings, tmp_path)
    for kind in ("losses", "test_losses"):
        found, near, far = (
            np.array([getattr(r, kind)]).reshape(7, -1)[:, -1]
            for r in (run, expected(settings), expected(still))
        )
        assert np.median(np.abs(found / near - 1)) < 1e-5
        assert np.median(np.abs(found / far - 1)) > 5e-5


@pytest.mark.parametrize("accumulation", [3, 8])
def test_micro_batches_of_unequal_sizes_come_to_the_same_numbers(accumulation, tmp_path):
    run = trained(SHORT, tmp_path, accumulation=accumulation)
    assert difference(expected(SHORT), run) < 2e-6


def test_a_snapshot_is_loaded_as_the_weights_that_were_asked_for(tmp_path):
    settings = replace(SHORT, iterations=3, conditional=True)
    run = trained(settings, tmp_path)
    for name, weights in (("raw", run.raw[3]), ("ema", run.ema[3])):
        network = load_snapshot(snapshot_path(tmp_path, 3), settings, 1, name)
        assert not network.training
        for key, value in network.state_dict().items():
            assert torch.equal(value, weights[key])
    assert any(not torch.equal(run.raw[3][key], run.ema[3][key]) for key in run.raw[3])


def test_every_setting_is_changed_by_a_case():
    changed = {name for _, change, _ in CASES for name in change}
    changed.add("precision")  # in a test of its own
    assert changed == {field.name for field in dataclasses.fields(TrainSettings)}
