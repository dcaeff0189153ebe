"""A training run of seconds: 24 iterations, four snapshots; interrupted, and compared."""

from pathlib import Path

import pytest
import torch

from scorekit.models.score_network import Architecture, ResStage
from scorekit.training.settings import TrainSettings
from scorekit.training.trainer import Trainer

SETTINGS = TrainSettings(
    architecture="32-64",
    width=4,
    conditional=False,
    sigma_begin=5,
    sigma_end=0.05,
    n_levels=8,
    iterations=24,
    batch_size=8,
    learning_rate=1e-3,
    snapshot_interval=6,
    test_interval=4,
)

#: Blocks of each kind and no block twice: compiling is most of what a test of compiled code takes.
FEW_BLOCKS = Architecture(stages=(ResStage(name="res1", width=1),), refine=(("refine1", 1),))


class Interrupted(Exception):
    pass


def run_until(trainer: Trainer, stop: int) -> None:
    def progress(iteration: int, loss: float) -> None:
        if iteration >= stop:
            raise Interrupted

    with pytest.raises(Interrupted):
        trainer.run(progress)


def flatten(state, prefix: str = "") -> dict:
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    else:
        return {prefix: state}
    return {k: v for name, value in items for k, v in flatten(value, f"{prefix}.{name}").items()}


def assert_same(state, expected) -> None:
    state, expected = flatten(state), flatten(expected)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(state[name], value), name
        else:
            assert state[name] == value, name


def everything(trainer: Trainer) -> dict:
    return {
        "iteration": trainer.iteration,
        "losses": trainer.losses,
        "test_losses": trainer.test_losses,
        "raw": trainer.network.state_dict(),
        "ema": trainer.ema_network.state_dict(),
        **{name: average.state_dict() for name, average in trainer.averages.items()},
        "optimizer": trainer.optimizer.state_dict(),
    }


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
