"""Energy models: networks whose value is log p(x) up to a constant, whose gradient is a score."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from scorekit.models.mlp import MLP, Smooth, smooth_activation


class EnergyModel(nn.Module):
    """A module whose ``forward`` takes (B, ...) and returns log p(x) + constant, (B,)."""

    def score(self, x: Tensor, create_graph: bool = False) -> Tensor:
        """Return the gradient of the log density, of x's shape.

        With ``create_graph`` it can be differentiated with respect to x and the parameters. Works
        under ``torch.no_grad`` too.
        """
        with torch.enable_grad():
            if not x.requires_grad:
                x = x.detach().requires_grad_()
            (score,) = torch.autograd.grad(self(x).sum(), x, create_graph=create_graph)
        return score


class MLPEnergy(EnergyModel):
    """A fully connected energy: ``depth`` linear layers, the last to one number.

    With ``dim`` = 2 and ``depth`` = 3 the "three-layer MLP" of the toy example of finite-difference
    score matching (authors' response, to reviewer 4). ``forward`` takes (B, dim).
    """

    def __init__(
        self, dim: int = 2, width: int = 128, depth: int = 3, activation: Smooth = "softplus"
    ) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"depth = {depth} must be at least 2: one layer is a plane")
        self.network = MLP(dim, 1, width, depth - 1, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).squeeze(1)


class _EnergyBlock(nn.Module):
    """x + scale conv(f(conv(f(x)))), with the last convolution zero at first."""

    def __init__(self, width: int, scale: float, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.scale, self.activation = scale, activation
        nn.init.kaiming_normal_(self.conv1.weight)
        for parameter in (self.conv1.bias, self.conv2.weight, self.conv2.bias):
            assert parameter is not None
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.activation(x))
        return x + self.scale * self.conv2(self.activation(h))


class ConvEnergy(EnergyModel):
    """A residual convolutional energy without normalisation, 2 ``n_blocks`` + 2 layers deep.

    ``forward`` takes (B, channels, image_size, image_size). The default depth is the 18 layers of
    the authors' deep energy model, whose width is 128. The resolution is halved by averaging up to
    ``n_halvings`` times, evenly over the blocks, while the side is even and at least 8. Features
    are summed over pixels, so that a pixel's score does not shrink with the size of the image.

    Residual branches are zero at first (Zhang et al. 2019, "Fixup") and scaled by 1 / sqrt(blocks),
    so that neither the first value nor its growth depends on depth. The activation is SiLU by
    default: softplus is positive, and its mean would pile up along branches that nothing
    normalises.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        width: int = 64,
        n_blocks: int = 8,
        n_halvings: int = 2,
        activation: Smooth = "silu",
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "image_size": image_size, "width": width}
        for name, value in {**sizes, "n_blocks": n_blocks}.items():
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        if n_halvings < 0:
            raise ValueError(f"n_halvings = {n_halvings} must be at least 0")
        self.shape = (channels, image_size, image_size)
        self.activation = smooth_activation(activation)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        scale = 1 / math.sqrt(n_blocks)
        self.blocks = nn.ModuleList(
            _EnergyBlock(width, scale, self.activation) for _ in range(n_blocks)
        )
        self.last = nn.Linear(width, 1)
        possible = 0
        while image_size % 2 == 0 and image_size >= 8 and possible < n_halvings:
            image_size, possible = image_size // 2, possible + 1
        #: Blocks before which the resolution is halved.
        self.halved_before = {n_blocks * (i + 1) // (possible + 1) for i in range(possible)}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shape:
            needed = ", ".join(map(str, self.shape))
            raise ValueError(f"x has shape {tuple(x.shape)}; (B, {needed}) is needed")
        h = self.first(x)
        for i, block in enumerate(self.blocks):
            if i in self.halved_before:
                h = avg_pool2d(h, 2)
            h = block(h)
        return self.last(self.activation(h).sum(dim=(2, 3))).squeeze(1)
