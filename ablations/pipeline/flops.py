"""FLOPs and parameters of a cell's network."""

from functools import lru_cache
from typing import Any

import torch

from ablations.pipeline.cell import Cell
from scorekit.models.score_network import (
    ARCHITECTURES,
    OwnArchitecture,
    forward_flops,
    parameter_count,
)


def cell_forward_flops(cell: Cell) -> int:
    """Return the FLOPs of one score evaluation of one image."""
    train, data = cell.train, cell.data
    return _forward_flops(_network_of(cell, 2), ARCHITECTURES[train.architecture], data.image_size)


def cell_parameters(cell: Cell) -> int:
    """Return the number of trainable parameters of a cell's network."""
    train = cell.train
    n_levels = train.n_levels if train.conditional else 2
    return _parameters(_network_of(cell, n_levels), ARCHITECTURES[train.architecture])


def _network_of(cell: Cell, n_levels: int) -> tuple[tuple[str, Any], ...]:
    train = cell.train
    settings: dict[str, Any] = {
        "architecture": train.architecture,
        "sigmas": n_levels,
        "conditional": train.conditional,
        "channels": cell.data.channels,
        "width": train.width,
    }
    if isinstance(ARCHITECTURES[train.architecture], OwnArchitecture):
        settings["conditioning"] = train.conditioning
    return tuple(settings.items())


# A network's counts take tens of milliseconds, and the cells of a grid share a few networks.
# ``known`` is what the architecture's name stands for, which an edited plugin changes.
@lru_cache(maxsize=64)
def _forward_flops(network: tuple[tuple[str, Any], ...], known: object, image_size: int) -> int:
    return forward_flops(_arguments(network), image_size)


@lru_cache(maxsize=64)
def _parameters(network: tuple[tuple[str, Any], ...], known: object) -> int:
    return parameter_count(_arguments(network))


def _arguments(network: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    settings = dict(network)
    return settings | {"sigmas": torch.linspace(2, 1, settings["sigmas"])}
