"""Settings of a training: what tells it from others, and what is refused."""

from dataclasses import replace

import pytest
from tiny_training import SETTINGS
from torch import nn

from scorekit.training.loss import ScoreLoss
from scorekit.training.settings import identity, trajectory_digest
from scorekit.training.trainer import Trainer


def test_settings_that_came_later_leave_the_digests_of_trainings_without_them():
    # That of before there were any.
    assert trajectory_digest(identity(SETTINGS) | {"data": "made"}) == "3666ab59dffeb608"
    assert identity(replace(SETTINGS, conditioning="inverse_sigma")) == identity(SETTINGS)
    told = replace(SETTINGS, conditional=True)
    assert identity(replace(told, conditioning="normalisation")) == identity(told)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_levels": "log_uniform"},
        {"conditioning": "none"},
        {"loss_weights": "min_snr"},
        {"ema_profiles": ("0.9",)},
        {"seed": 1},
    ],
)
def test_each_other_training_has_another_digest(change):
    other = identity(replace(SETTINGS, **change))
    assert other == identity(SETTINGS) | change
    assert trajectory_digest(other) != trajectory_digest(identity(SETTINGS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_levels": "uniform"}, "noise_levels = 'uniform': one of ladder, log_uniform"),
        ({"loss_weights": "snr"}, "loss_weights = 'snr': one of own, equal, min_snr"),
        ({"conditioning": "edm"}, "conditioning = 'edm' is told"),
        ({"ema_profiles": ("power:2",)}, "ema = 'power:2': relative width = 2.0 must lie in"),
        ({"ema_profiles": ("0.9", "0.9")}, "ema_profiles holds '0.9' twice"),
        ({"ema_profiles": (" 0.9",)}, "ema_profiles holds ' 0.9' twice, or with spaces"),
        ({"conditioning": "film"}, "conditioning = 'film': one of normalisation"),
    ],
)
def test_words_without_meaning_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)


class Own(nn.Module):
    """A network that knows the ladder's scales only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, noise_index):
        return self.conv(x)


def test_scales_that_a_network_cannot_be_told_are_refused_before_training(digits, tmp_path):
    settings = replace(SETTINGS, noise_levels="log_uniform")
    with pytest.raises(ValueError, match=r"noise_levels = 'log_uniform' .* which Own has not"):
        Trainer(settings, digits, tmp_path, network=Own())
    Trainer(SETTINGS, digits, tmp_path, network=Own(), compile=False)
    ScoreLoss.comparable(settings, "cpu").check(Own())
