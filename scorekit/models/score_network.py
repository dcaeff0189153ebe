"""The score networks of Song & Ermon (2020), Tables 2 and 3, from one table of stages.

Conditional networks (NCSN) look their noise scale up in CondInstanceNorm++; unconditional ones
(NCSNv2, Technique 3) see the image alone and have their output divided by sigma. What else there
is: :mod:`scorekit.models.conditioning`. Parameter names are those of the authors' released
checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scorekit.models.conditioning import (
    CONDITIONINGS,
    Conditioning,
    check_conditioning,
    default_conditioning,
)
from scorekit.models.layers import RefineBlock, ResBlock, normalisation


@dataclass(frozen=True, kw_only=True)
class ResStage:
    """Two ResBlocks; the first changes the width, halves the resolution or, dilated, does not."""

    name: str
    width: int  # in multiples of the network's width (128 in the paper)
    pool: bool = False
    dilation: int = 1


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """ResNet stages from fine to coarse, and the RefineBlocks that lead back, coarse to fine."""

    stages: tuple[ResStage, ...]
    refine: tuple[tuple[str, int], ...]  # name, width in multiples of the network's width
    #: Raised when these weights come to mean another function: older trainings are not this one's.
    revision: int = 1

    @property
    def divisor(self) -> int:
        """The number that must divide the image's side."""
        return 2 ** sum(stage.pool for stage in self.stages)


#: Keyed by the resolutions of the paper's column headings: (a), (b) and (c) of Tables 2 and 3.
ARCHITECTURES = {
    "32-64": Architecture(
        stages=(
            ResStage(name="res1", width=1),
            ResStage(name="res2", width=2, pool=True),
            ResStage(name="res3", width=2, dilation=2),
            ResStage(name="res4", width=2, dilation=4),
        ),
        refine=(("refine1", 2), ("refine2", 2), ("refine3", 1), ("refine4", 1)),
    ),
    "96-128": Architecture(
        stages=(
            ResStage(name="res1", width=1),
            ResStage(name="res2", width=2, pool=True),
            ResStage(name="res3", width=2, pool=True),
            ResStage(name="res4", width=4, dilation=2),
            ResStage(name="res5", width=4, dilation=4),
        ),
        refine=(("refine1", 4), ("refine2", 2), ("refine3", 2), ("refine4", 1), ("refine5", 1)),
    ),
    "256": Architecture(
        stages=(
            ResStage(name="res1", width=1),
            ResStage(name="res2", width=2, pool=True),
            ResStage(name="res3", width=2, pool=True),
            ResStage(name="res31", width=2, pool=True),
            ResStage(name="res4", width=4, dilation=2),
            ResStage(name="res5", width=4, dilation=4),
        ),
        refine=(
            ("refine1", 4),
            ("refine2", 2),
            # Takes what res31 gave, and refine3 what res3 gave. Both have the same shapes, so
            # released weights load in either order.
            ("refine31", 2),
            ("refine3", 2),
            ("refine4", 1),
            ("refine5", 1),
        ),
        revision=2,
    ),
}


def architecture_for(image_size: int) -> str:
    """Return the name of the paper's architecture for square images of this side in pixels."""
    if image_size < 96:
        return "32-64"
    return "96-128" if image_size < 192 else "256"


def check_architecture(architecture: str) -> None:
    """Raise ValueError, which lists those known, unless the architecture is one of them."""
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture = {architecture!r} is unknown; known: {', '.join(ARCHITECTURES)}"
        )


def check_image_size(architecture: str, image_size: int) -> None:
    """Raise ValueError unless the architecture is known and takes images of this side."""
    check_architecture(architecture)
    divisor = ARCHITECTURES[architecture].divisor
    if image_size < 2 * divisor or image_size % divisor:
        raise ValueError(
            f"image_size = {image_size} does not fit architecture {architecture!r}: "
            f"it must be a multiple of {divisor}, at least {2 * divisor}"
        )


class ScoreNetwork(nn.Module):
    """A noise-conditional score network s(x, sigma_i) on images (B, channels, H, W) in [0, 1].

    ``sigmas`` is the descending ladder (L,), kept as a float32 buffer. ``width`` is the number of
    filters at full resolution: 128 in the paper, at least 2 (InstanceNorm++ takes a variance over
    channels). With ``conditional`` the noise index selects rows of CondInstanceNorm++ (NCSN,
    Table 2), else the output is divided by sigma (NCSNv2, Table 3). ``conditioning`` names another
    of :data:`scorekit.models.conditioning.CONDITIONINGS`, of networks that are conditional, or that
    are not (ValueError otherwise).
    """

    def __init__(
        self,
        architecture: str,
        sigmas: Tensor,
        *,
        conditional: bool = False,
        channels: int = 3,
        width: int = 128,
        conditioning: str | None = None,
    ) -> None:
        super().__init__()
        check_architecture(architecture)
        self.conditioning = conditioning or default_conditioning(conditional)
        check_conditioning(self.conditioning, conditional)
        if channels < 1 or width < 2:
            raise ValueError(f"channels = {channels} must be >= 1 and width = {width} >= 2")
        if sigmas.ndim != 1 or len(sigmas) < 1 or not bool((sigmas > 0).all()):
            raise ValueError("sigmas must be a vector of positive noise scales")
        self.architecture = architecture
        self.conditional = conditional
        n_classes = len(sigmas) if conditional else None
        self.sigmas: Tensor
        # The authors' NCSN checkpoints carry no ladder, their NCSNv2 checkpoints do.
        self.register_buffer("sigmas", sigmas.to(torch.float32), persistent=not conditional)

        table = ARCHITECTURES[architecture]
        self.begin_conv = nn.Conv2d(channels, width, 3, padding=1)
        stage_widths = []
        previous = width
        for stage in table.stages:
            out = stage.width * width
            resample = stage.pool or stage.dilation > 1
            self.add_module(
                stage.name,
                nn.ModuleList(
                    [
                        ResBlock(previous, out, resample, stage.dilation, n_classes),
                        ResBlock(out, out, False, stage.dilation, n_classes),
                    ]
                ),
            )
            stage_widths.append(out)
            previous = out
        path_width = None
        for i, (name, multiple) in enumerate(table.refine):
            inputs = [stage_widths[-1 - i]] + ([path_width] if path_width else [])
            path_width = multiple * width
            last = i == len(table.refine) - 1
            self.add_module(name, RefineBlock(inputs, path_width, 3 if last else 1, n_classes))
        self.normalizer = normalisation(width, n_classes)
        self.end_conv = nn.Conv2d(width, channels, 3, padding=1)

    @property
    def n_levels(self) -> int:
        """L, the number of noise scales."""
        return len(self.sigmas)

    def features(self, x: Tensor, noise_index: Tensor | None) -> Tensor:
        """Return the network's output before any division by sigma; shapes as in ``forward``."""
        return self._body(2 * x - 1, noise_index)

    def _body(self, y: Tensor, noise_index: Tensor | None) -> Tensor:
        """Return the output for centred images y, in [-1, 1] but for their noise."""
        table = ARCHITECTURES[self.architecture]
        h = self.begin_conv(y)
        outputs = []
        for stage in table.stages:
            for block in self.get_submodule(stage.name).children():
                h = block(h, noise_index)
            outputs.append(h)
        path: Tensor | None = None
        for (name, _), lateral in zip(table.refine, reversed(outputs), strict=True):
            inputs = [lateral] if path is None else [lateral, path]
            path = self.get_submodule(name)(inputs, noise_index)
        assert path is not None
        return self.end_conv(self.normalizer(path, noise_index, "elu"))

    def forward(self, x: Tensor, noise_index: Tensor) -> Tensor:
        """Return the score (B, channels, H, W) at noise scales ``noise_index`` (B,), 0 largest."""
        return self._score(x, self.sigmas[noise_index], noise_index, times_sigma=False)

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the score (B, channels, H, W) at any sigma > 0, a number or a tensor (B,).

        A conditional network, which knows its own L noise scales, is told the place of sigma among
        their logarithms, :meth:`place`.
        """
        return self._score(x, self._as_sigma(x, sigma), None, times_sigma=False)

    def scaled_score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return sigma * s(x, sigma), of which Technique 3's network is blind to sigma."""
        return self._score(x, self._as_sigma(x, sigma), None, times_sigma=True)

    def sampled_along(
        self, sigmas: Tensor, *, between: bool = False
    ) -> tuple[Callable[[Tensor, Tensor], Tensor], dict[str, bool]]:
        """Return what a sampler is to be given to descend a ladder, and its options.

        ``between`` says that the sampler evaluates scores at scales between those of ``sigmas``
        (:func:`scorekit.sampling.evaluates_between`). A blind network takes any scale; a told one
        its own by their indices, and others by their place among them.
        """
        if self.conditioning == "inverse_sigma":
            return self.features, {"times_sigma": True}
        own = torch.equal(sigmas.to(self.sigmas), self.sigmas)
        if CONDITIONINGS[self.conditioning].told and own and not between:
            return self, {}
        return self.scaled_score, {"times_sigma": True, "takes_sigma": True}

    def place(self, sigma: Tensor) -> Tensor:
        """Return the noise index of sigma (B,), linear in ln sigma between two of the ladder.

        That of the ladder's end for scales beyond it.
        """
        if len(self.sigmas) == 1:
            return torch.zeros_like(sigma)
        logs, log = self.sigmas.log().to(sigma.dtype), sigma.log()
        below = torch.searchsorted(-logs, -log, right=True) - 1
        below = below.clamp(0, len(self.sigmas) - 2)
        upper, lower = logs[below], logs[below + 1]
        return below + ((upper - log) / (upper - lower)).clamp(0, 1)

    @staticmethod
    def _as_sigma(x: Tensor, sigma: Tensor | float) -> Tensor:
        return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1)

    def _score(
        self, x: Tensor, sigma: Tensor, noise_index: Tensor | None, *, times_sigma: bool
    ) -> Tensor:
        """Return the score, or sigma times it, at ``sigma`` (B,) or (1,), at ``noise_index``."""
        way: Conditioning = CONDITIONINGS[self.conditioning]
        if way.told and noise_index is None:
            noise_index = self.place(sigma).expand(x.shape[0])
        sigma = sigma.reshape(-1, 1, 1, 1)
        y = 2 * x - 1
        output = self._body(
            y if way.c_in is None else way.c_in(sigma) * y, noise_index if way.told else None
        )
        output = way.output(output, y, sigma)
        if way.times_sigma == times_sigma:
            return output
        return sigma * output if times_sigma else output / sigma

    def n_parameters(self) -> int:
        """Return the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())


class _WithoutDraws(TorchFunctionMode):
    """Leaves out the draws of initial weights, for which torch imports its compiler on "meta"."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _shapes_of(network_settings: dict) -> ScoreNetwork:
    """Return the network with shapes and without memory, on "meta"."""
    with torch.device("meta"), _WithoutDraws():
        return ScoreNetwork(**network_settings)


def parameter_count(network_settings: dict) -> int:
    """Return the number of trainable parameters, without making them; arguments as below."""
    return _shapes_of(network_settings).n_parameters()


def forward_flops(network_settings: dict, image_size: int) -> int:
    """Return the FLOPs (2 per multiply-add) of one forward pass of one image, without running it.

    ``network_settings`` are the arguments of :class:`ScoreNetwork`.
    """
    sizes: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: sizes.update({name: output[0, 0].numel()})

    # Nothing but convolutions is counted, and the sides of what they give do not depend on widths:
    # a narrow network tells them. torch's FlopCounterMode, and any pass on "meta", import the
    # compiler, which takes seconds.
    with torch.random.fork_rng(devices=[]):
        narrow = ScoreNetwork(**network_settings | {"width": 2})
    for name, module in narrow.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        image = torch.zeros(1, narrow.begin_conv.in_channels, image_size, image_size)
        narrow.features(image, torch.zeros(1, dtype=torch.int64))
    weights = dict(_shapes_of(network_settings).named_parameters())
    return sum(2 * size * weights[f"{name}.weight"].numel() for name, size in sizes.items())
