"""The trainer with a network and a loss of one's own: the same checkpoints, the same resumption."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import SETTINGS
from torch import nn
from torch.nn import functional

from kernels.philox import Stream, philox_normal
from scorekit.checkpoints.store import snapshot_path
from scorekit.checkpoints.tensors import load_tensors
from scorekit.data.store import Dataset
from scorekit.models.seeded import seeded
from scorekit.runtime.interruption import Stopped
from scorekit.training.networks import load_weights
from scorekit.training.settings import RunSettings
from scorekit.training.trainer import Trainer

RUN = RunSettings(
    iterations=12, batch_size=8, learning_rate=1e-2, snapshot_interval=6, test_interval=3, seed=5
)


class Denoiser(nn.Module):
    """A small U-Net: half the side and back, with what was left out beside."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 8, 3, 2, 1), nn.ConvTranspose2d(8, 8, 2, 2)
        self.end = nn.Conv2d(9, 1, 3, padding=1)

    def forward(self, x):
        return self.end(torch.cat([x, self.up(functional.silu(self.down(x)))], dim=1))


def denoising(network, images, index, step, key):
    x = images.float() / 255
    noise = philox_normal(key, index, step, tuple(x.shape[1:]), Stream.PERTURBATION)
    return (network(x + 0.3 * noise) - x).square().flatten(1).mean(dim=1)


@pytest.fixture(scope="module")
def dataset():
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    return Dataset(name="mine", train=images[:30], test=images[30:], flip=False, fingerprint="f")


def trainer(dataset, directory, seed=0, **how) -> Trainer:
    network = seeded(seed, Denoiser)
    return Trainer(RUN, dataset, directory, network=network, loss=denoising, compile=False, **how)


def test_a_network_of_ones_own_learns_and_its_snapshots_load(dataset, tmp_path):
    own = trainer(dataset, tmp_path)
    own.run()
    assert np.mean(own.losses[-3:]) < np.mean(own.losses[:3])
    assert [at for at, _ in own.test_losses] == [3, 6, 9, 12]
    loaded = Denoiser()
    load_weights(loaded, snapshot_path(tmp_path, 12), "ema")
    for name, value in own.ema_network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    # On test images, with the averaged weights.
    expected = denoising(
        loaded,
        torch.from_numpy(dataset.test[:8]),
        torch.arange(8),
        torch.tensor(2**32 - 1),
        own._key,
    )
    assert own.test_losses[-1][1] == pytest.approx(float(expected.mean().detach()), rel=1e-5)


@pytest.mark.parametrize("at", [1, 6, 8])
def test_it_continues_bit_for_bit_whatever_weights_it_is_given(dataset, tmp_path, at):
    whole = trainer(dataset, tmp_path / "whole")
    whole.run()
    asked = iter([False] * at + [True])
    with pytest.raises(Stopped, match=f"at iteration {at}"):
        trainer(dataset, tmp_path / "cut").run(stop=lambda: next(asked))
    again = trainer(dataset, tmp_path / "cut", seed=99)
    again.run()
    assert (again.losses, again.test_losses) == (whole.losses, whole.test_losses)
    states = [load_tensors(t.directory / "checkpoint-0000012.pt") for t in (again, whole)]
    for key in ("raw", "ema"):
        for name, value in states[1][key].items():
            assert torch.equal(states[0][key][name], value)


def test_micro_batches_come_to_the_same(dataset, tmp_path):
    losses = []
    for accumulation in (1, 3):
        own = trainer(dataset, tmp_path / str(accumulation), accumulation=accumulation)
        own.run()
        losses.append(own.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_test_loss_of_ones_own_is_what_is_watched(dataset, tmp_path):
    own = trainer(dataset, tmp_path, test_loss=lambda network, images, *_: images.float().sum())
    own.run()
    assert {loss for _, loss in own.test_losses} == {float(dataset.test[:8].sum()) / 8}


class Scores(nn.Module):
    """What the settings' objective asks of a network: images and noise indices to scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.sigmas = nn.Conv2d(1, 1, 3, padding=1), SETTINGS.sigmas

    def forward(self, x, level):
        return self.conv(x) / self.sigmas[level].reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("objective", ["dsm", "fd_ssm_vr"])
def test_a_network_alone_is_trained_by_the_objective_of_the_settings(dataset, tmp_path, objective):
    settings = replace(SETTINGS, objective=objective, iterations=2)
    own = Trainer(settings, dataset, tmp_path, network=Scores(), compile=False)
    before = own.network.conv.weight.detach().clone()
    own.run()
    assert len(own.losses) == 2 and not torch.equal(own.network.conv.weight, before)


def test_what_cannot_be_trained_so_is_refused_before_anything_is_written(dataset, tmp_path):
    folder = tmp_path / "run"
    for missing in ({"network": Denoiser()}, {"loss": denoising}):
        with pytest.raises(ValueError, match="network and loss are needed"):
            Trainer(RUN, dataset, folder, **missing)
    for layer, message in ((nn.BatchNorm2d(1), "BatchNorm2d"), (nn.Dropout(0.1), "Dropout")):
        with pytest.raises(ValueError, match=message):
            Trainer(RUN, dataset, folder, network=nn.Sequential(Denoiser(), layer), loss=denoising)
    assert not folder.exists()
    Trainer(RUN, dataset, folder, network=nn.Sequential(Denoiser(), nn.Dropout(0)), loss=denoising)
