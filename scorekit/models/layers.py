"""Building blocks of the score networks: InstanceNorm++, ResBlock and RefineBlock.

InstanceNorm++ is from Song & Ermon (2019), App. A; the blocks from RefineNet (Lin et al. 2017) as
modified in Song & Ermon (2020), App. B.1. Every ``forward`` takes images (B, C, H, W) and the noise
indices (B,), which unconditional layers ignore; that of a normalisation applies ``activation`` to
its result as well. ``n_classes`` is L for conditional layers or None. A noise index that is no
whole number, of a floating dtype, lies between two scales.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from kernels.instance_norm_plus import Activation, elu, instance_norm_plus


class InstanceNormPlus(nn.Module):
    """InstanceNorm++ with one row of parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels).normal_(1, 0.02))
        self.gamma = nn.Parameter(torch.empty(channels).normal_(1, 0.02))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(
        self, x: Tensor, noise_index: Tensor | None, activation: Activation = "none"
    ) -> Tensor:
        return instance_norm_plus(x, self.gamma, self.alpha, self.beta, activation=activation)


class CondInstanceNormPlus(nn.Module):
    """InstanceNorm++ with a row of (gamma, alpha, beta) for each of ``n_classes`` noise scales.

    Between two scales it is on the straight line between their rows.
    """

    def __init__(self, channels: int, n_classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(n_classes, 3 * channels)
        with torch.no_grad():
            self.embed.weight[:, : 2 * channels].normal_(1, 0.02)
            self.embed.weight[:, 2 * channels :].zero_()

    def forward(
        self, x: Tensor, noise_index: Tensor | None, activation: Activation = "none"
    ) -> Tensor:
        assert noise_index is not None
        gamma, alpha, beta = self._rows(noise_index).chunk(3, dim=-1)
        return instance_norm_plus(x, gamma, alpha, beta, activation=activation)

    def _rows(self, noise_index: Tensor) -> Tensor:
        if not noise_index.is_floating_point():
            return self.embed(noise_index)
        last = self.embed.num_embeddings - 1
        below = noise_index.floor()
        row = below.long().clamp(0, last)
        fraction = (noise_index - below).to(self.embed.weight.dtype)[:, None]
        return torch.lerp(self.embed(row), self.embed((row + 1).clamp(max=last)), fraction)


def normalisation(channels: int, n_classes: int | None) -> nn.Module:
    """Return (Cond)InstanceNorm++ for ``channels``."""
    if n_classes is None:
        return InstanceNormPlus(channels)
    return CondInstanceNormPlus(channels, n_classes)


class _ConvMeanPool(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(self.conv(x), 2)


class ResBlock(nn.Module):
    """norm, ELU, conv, norm, ELU, conv plus shortcut; "down" (``resample``) dilated or pooled.

    A dilated "down" block keeps the resolution: dilation stands in for it.
    """

    def __init__(
        self, inputs: int, outputs: int, resample: bool, dilation: int, n_classes: int | None
    ) -> None:
        super().__init__()

        def conv(a: int, b: int) -> nn.Module:
            return nn.Conv2d(a, b, 3, padding=dilation, dilation=dilation)

        between = inputs if resample else outputs
        self.normalize1 = normalisation(inputs, n_classes)
        self.conv1 = conv(inputs, between)
        self.normalize2 = normalisation(between, n_classes)
        if resample and dilation == 1:
            self.conv2: nn.Module = _ConvMeanPool(inputs, outputs, 3)
            self.shortcut: nn.Module = _ConvMeanPool(inputs, outputs, 1)
        else:
            self.conv2 = conv(between, outputs)
            self.shortcut = conv(inputs, outputs) if resample else nn.Identity()

    def forward(self, x: Tensor, noise_index: Tensor | None) -> Tensor:
        h = self.conv1(self.normalize1(x, noise_index, "elu"))
        h = self.conv2(self.normalize2(h, noise_index, "elu"))
        return self.shortcut(x) + h


def _conv3(inputs: int, outputs: int, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class _ResidualConvUnit(nn.Module):
    """``n_blocks`` residual blocks, each two times (norm when conditional, ELU, conv)."""

    def __init__(self, width: int, n_blocks: int, n_classes: int | None) -> None:
        super().__init__()
        self.n_blocks = n_blocks
        self.conditional = n_classes is not None
        for block in range(1, n_blocks + 1):
            for stage in (1, 2):
                if n_classes is not None:
                    self.add_module(f"{block}_{stage}_norm", normalisation(width, n_classes))
                self.add_module(f"{block}_{stage}_conv", _conv3(width, width))

    def forward(self, x: Tensor, noise_index: Tensor | None) -> Tensor:
        for block in range(1, self.n_blocks + 1):
            h = x
            for stage in (1, 2):
                if self.conditional:
                    h = self.get_submodule(f"{block}_{stage}_norm")(h, noise_index, "elu")
                else:
                    h = elu(h)
                h = self.get_submodule(f"{block}_{stage}_conv")(h)
            x = x + h
        return x


class _MultiScaleFusion(nn.Module):
    """Bring every input to one width and to the first input's resolution, and add them up."""

    def __init__(self, inputs: list[int], width: int, n_classes: int | None) -> None:
        super().__init__()
        self.convs = nn.ModuleList([_conv3(i, width, bias=True) for i in inputs])
        if n_classes is not None:
            self.norms = nn.ModuleList([normalisation(i, n_classes) for i in inputs])
        self.conditional = n_classes is not None

    def forward(self, xs: list[Tensor], noise_index: Tensor | None) -> Tensor:
        size = xs[0].shape[2:]
        total: Tensor | None = None
        for i, (x, conv) in enumerate(zip(xs, self.convs, strict=True)):
            h = conv(self.norms[i](x, noise_index) if self.conditional else x)
            if h.shape[2:] != size:
                h = interpolate(h, size=size, mode="bilinear", align_corners=True)
            total = h if total is None else total + h
        assert total is not None
        return total


class _ChainedResidualPooling(nn.Module):
    """Two pool-conv stages, each added to the running sum; average pools when conditional."""

    def __init__(self, width: int, n_classes: int | None) -> None:
        super().__init__()
        self.convs = nn.ModuleList([_conv3(width, width) for _ in range(2)])
        if n_classes is not None:
            self.norms = nn.ModuleList([normalisation(width, n_classes) for _ in range(2)])
        self.conditional = n_classes is not None

    def forward(self, x: Tensor, noise_index: Tensor | None) -> Tensor:
        x = elu(x)
        path = x
        for i, conv in enumerate(self.convs):
            if self.conditional:
                path = avg_pool2d(self.norms[i](path, noise_index), 5, stride=1, padding=2)
            else:
                path = max_pool2d(path, 5, stride=1, padding=2)
            path = conv(path)
            x = path + x
        return x


class RefineBlock(nn.Module):
    """Residual conv units, multi-scale fusion, chained residual pooling, output conv unit."""

    def __init__(
        self, inputs: list[int], width: int, n_output_blocks: int, n_classes: int | None
    ) -> None:
        super().__init__()
        if len(inputs) == 1 and inputs[0] != width:
            raise ValueError(f"a RefineBlock of one input keeps its width {inputs[0]}, not {width}")
        self.adapt_convs = nn.ModuleList([_ResidualConvUnit(i, 2, n_classes) for i in inputs])
        if len(inputs) > 1:
            self.msf = _MultiScaleFusion(inputs, width, n_classes)
        self.crp = _ChainedResidualPooling(width, n_classes)
        self.output_convs = _ResidualConvUnit(width, n_output_blocks, n_classes)

    def forward(self, xs: list[Tensor], noise_index: Tensor | None) -> Tensor:
        adapted = [unit(x, noise_index) for unit, x in zip(self.adapt_convs, xs, strict=True)]
        h = self.msf(adapted, noise_index) if len(adapted) > 1 else adapted[0]
        return self.output_convs(self.crp(h, noise_index), noise_index)
