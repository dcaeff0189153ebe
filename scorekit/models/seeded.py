"""Models built from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Model = TypeVar("Model")


def seeded(seed: int, build: Callable[[], Model]) -> Model:
    """Return a freshly initialised model, a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
