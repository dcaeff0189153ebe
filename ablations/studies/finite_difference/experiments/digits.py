"""The deep energy of the digits, and its noisy images."""

from __future__ import annotations

from typing import Any

from ablations.studies.finite_difference.experiments.learning import (
    NoisyImages,
)
from scorekit.data.embedded import digits_split
from scorekit.data.pixels import to_float
from scorekit.models.energy import ConvEnergy


def digits_energy(settings: dict[str, Any]) -> ConvEnergy:
    return ConvEnergy(1, 8, settings["width"], settings["n_blocks"], n_halvings=0)


def noisy_digits(settings: dict[str, Any]) -> NoisyImages:
    train, test = (to_float(digits_split(split)[0]) for split in ("train", "test"))
    return NoisyImages(settings, train, test[: settings["n_held_out"]])
