"""FLOPs and parameters of a cell's network."""

from functools import lru_cache

import torch

from ablations.pipeline.cell import Cell
from scorekit.models.score_network import forward_flops, parameter_count


def cell_forward_flops(cell: Cell) -> int:
    """Return the FLOPs of one score evaluation of one image."""
    train = cell.train
    return _forward_flops(train.architecture, train.width, cell.data.channels, cell.data.image_size)


def cell_parameters(cell: Cell) -> int:
    """Return the number of trainable parameters of a cell's network."""
    train = cell.train
    n_classes = train.n_levels if train.conditional else None
    return _parameters(train.architecture, train.width, cell.data.channels, n_classes)


# A network's counts take tens of milliseconds, and the cells of a grid share a few networks.
@lru_cache(maxsize=64)
def _forward_flops(architecture: str, width: int, channels: int, image_size: int) -> int:
    settings = dict(architecture=architecture, sigmas=torch.ones(2), channels=channels, width=width)
    return forward_flops(settings, image_size)


@lru_cache(maxsize=64)
def _parameters(architecture: str, width: int, channels: int, n_classes: int | None) -> int:
    return parameter_count(
        dict(
            architecture=architecture,
            sigmas=torch.ones(n_classes or 1),
            conditional=n_classes is not None,
            channels=channels,
            width=width,
        )
    )
