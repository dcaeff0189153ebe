import dataclasses

import numpy as np
import pytest
import torch
from tiny_training import SETTINGS

from kernels.philox import philox_key
from scorekit.training.held_out_loss import compare_losses, evaluated_losses
from scorekit.training.loss import ScoreLoss
from scorekit.training.networks import build_network


def network_and_images(n=6, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    network = build_network(settings, 1).eval().requires_grad_(False)
    images = torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8)
    return network, settings, images


@pytest.mark.parametrize("objective", ["dsm", "ssm_vr", "fd_ssm_vr"])
def test_losses_are_the_trainings_objective_over_several_draws_of_noise(objective):
    network, settings, images = network_and_images(objective=objective)
    index = torch.arange(6)
    found = evaluated_losses(network, settings, images, index, 3)
    key, loss = philox_key(settings.seed, "cpu"), ScoreLoss(settings, "cpu", augmented=False)
    expected = [
        loss(network, images, index, torch.tensor(2**32 - 2 - draw), key) for draw in range(3)
    ]
    assert found == pytest.approx(torch.stack(expected).detach().double().mean(dim=0).numpy())
    assert found.dtype == np.float64 and np.isfinite(found).all()


def test_images_of_one_index_share_their_noise_and_no_batch_changes_it():
    network, settings, images = network_and_images()
    same = images[:1].expand(6, -1, -1, -1).contiguous()
    once = evaluated_losses(network, settings, same, torch.zeros(6, dtype=torch.int64), 2)
    assert once == pytest.approx(np.full(6, once[0]))
    other = evaluated_losses(network, settings, same, torch.arange(6), 2)
    assert len(set(other.round(6))) == 6
    part = evaluated_losses(network, settings, images[4:], torch.arange(4, 6), 2)
    whole = evaluated_losses(network, settings, images, torch.arange(6), 2)
    assert part == pytest.approx(whole[4:], rel=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"noise_levels": "log_normal"}, {"noise_levels": "log_uniform"}, {"loss_weights": "min_snr"}],
)
def test_losses_compare_between_trainings_of_other_noise_and_weights(change):
    network, settings, images = network_and_images()
    other = dataclasses.replace(settings, **change)
    losses = [evaluated_losses(network, s, images, torch.arange(6), 1) for s in (settings, other)]
    assert (losses[0] == losses[1]).all()


def test_images_are_not_flipped():
    network, settings, images = network_and_images(flip=True)
    plain = dataclasses.replace(settings, flip=False)
    losses = [evaluated_losses(network, s, images, torch.arange(6), 1) for s in (settings, plain)]
    assert (losses[0] == losses[1]).all()


def test_the_difference_is_known_as_well_as_paired_noise_allows():
    rng = np.random.default_rng(0)
    noise = 50 * rng.normal(size=400)  # of the pair
    train, test = (noise + level + rng.normal(size=400) for level in (100, 100.5))
    found = compare_losses(train, test, draws=2)
    assert found.train_error == pytest.approx(train.std(ddof=1) / 20)
    assert found.gap == pytest.approx(found.test - found.train)
    assert found.gap_error == pytest.approx(2**0.5 / 20, rel=0.15)
    assert found.gap == pytest.approx(0.5, abs=4 * found.gap_error)
    assert (found.n, found.draws) == (400, 2)
    with pytest.raises(ValueError, match="n >= 2"):
        compare_losses(train[:1], test[:1], draws=2)
