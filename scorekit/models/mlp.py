"""Fully connected networks with smooth activations, which score matching differentiates thrice.

Score matching takes second derivatives in x and one more in the parameters. ReLU has no curvature,
and ELU's second derivative jumps at 0: what it has there would be missing from an automatic
derivative and present in a finite difference. Softplus, SiLU and tanh are smooth.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

Smooth = Literal["softplus", "silu", "tanh"]
_SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": softplus,
    "silu": silu,
    "tanh": torch.tanh,
}


def smooth_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return a smooth activation by name; ValueError for any other."""
    if name not in _SMOOTH:
        raise ValueError(f"activation = {name!r} must be smooth, one of {', '.join(_SMOOTH)}")
    return _SMOOTH[name]


class MLP(nn.Module):
    """``n_hidden`` layers of ``width`` and a linear one: (B, inputs) to (B, outputs)."""

    def __init__(
        self, inputs: int, outputs: int, width: int, n_hidden: int, activation: Smooth
    ) -> None:
        super().__init__()
        sizes = {"inputs": inputs, "outputs": outputs, "width": width, "n_hidden": n_hidden}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        self.inputs = inputs
        self.activation = smooth_activation(activation)
        self.hidden = nn.ModuleList(
            nn.Linear(a, b) for a, b in pairwise([inputs, *[width] * n_hidden])
        )
        self.last = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.inputs:
            raise ValueError(f"x has shape {tuple(x.shape)}; (B, {self.inputs}) is needed")
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.last(x)
