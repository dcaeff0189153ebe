"""The score networks of Song & Ermon (2020), Tables 2 and 3, from one table of stages.

Conditional networks (NCSN) look their noise scale up in CondInstanceNorm++; unconditional ones
(NCSNv2, Technique 3) see the image alone and have their output divided by sigma. What else there
is: :mod:`scorekit.models.conditioning`. Parameter names are those of the authors' released
checkpoints. Networks of one's own have names beside theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scorekit.models.layers import RefineBlock, ResBlock, normalisation
from scorekit.models.noise_conditional import NoiseConditionalNetwork


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


class NetworkFactory(Protocol):
    """(sigmas, channels, width, conditional, conditioning) -> module, freshly initialised.

    The module maps images (B, channels, H, W) in [0, 1] and noise indices, int64 (B,), to scores.
    ``sigmas`` (L,) is the ladder; ``width``, ``conditional`` and ``conditioning`` are settings, of
    which it makes what it likes. A :class:`NoiseConditionalNetwork` is such a module.
    """

    def __call__(
        self,
        sigmas: Tensor,
        *,
        channels: int,
        width: int,
        conditional: bool,
        conditioning: str | None,
    ) -> nn.Module:
        """Return the network."""


@dataclass(frozen=True, kw_only=True)
class OwnArchitecture:
    """A network that is no table of stages: what makes it, and what it takes."""

    make: NetworkFactory
    divisor: int = 1  # the number that must divide the image's side
    any_scale: bool = False  # whether it has a method score(x, sigma), of any sigma > 0
    revision: int = 1


#: By the name that a setting gives: add to them by :func:`register_architecture`.
ARCHITECTURES: dict[str, Architecture | OwnArchitecture] = {}


def register_architecture(
    name: str,
    architecture: Architecture | NetworkFactory,
    *,
    divisor: int = 1,
    any_scale: bool | None = None,
) -> None:
    """Give a network a name: a table of stages, or a factory of modules.

    ``divisor`` must divide the side of a factory's images. ``any_scale`` says that its modules have
    a method ``score(x, sigma)`` for sigma between those of the ladder; where it is not given, it is
    looked for on a class. ValueError for a name that is taken.
    """
    if name in ARCHITECTURES:
        raise ValueError(f"architecture = {name!r} is registered already")
    if isinstance(architecture, Architecture):
        ARCHITECTURES[name] = architecture
        return
    if any_scale is None:
        any_scale = isinstance(architecture, type) and hasattr(architecture, "score")
    ARCHITECTURES[name] = OwnArchitecture(make=architecture, divisor=divisor, any_scale=any_scale)


#: The paper's, by the resolutions of its column headings: (a), (b) and (c) of Tables 2 and 3.
PAPER_ARCHITECTURES = {
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
for _name, _table in PAPER_ARCHITECTURES.items():
    register_architecture(_name, _table)


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


def takes_any_scale(architecture: str) -> bool:
    """Return whether networks of an architecture have a method ``score(x, sigma)``."""
    check_architecture(architecture)
    known = ARCHITECTURES[architecture]
    return isinstance(known, Architecture) or known.any_scale


class ScoreNetwork(NoiseConditionalNetwork):
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
        table = _table_of(architecture)
        if channels < 1 or width < 2:
            raise ValueError(f"channels = {channels} must be >= 1 and width = {width} >= 2")
        super().__init__(sigmas, conditional=conditional, conditioning=conditioning)
        self.architecture = architecture
        n_classes = len(sigmas) if conditional else None
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

    def body(self, y: Tensor, noise_index: Tensor | None) -> Tensor:
        """Return the output for centred images y, in [-1, 1] but for their noise."""
        table = _table_of(self.architecture)
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


def _table_of(architecture: str) -> Architecture:
    check_architecture(architecture)
    table = ARCHITECTURES[architecture]
    if not isinstance(table, Architecture):
        raise ValueError(f"architecture = {architecture!r} has no table of stages: make_network")
    return table


def make_network(
    architecture: str,
    sigmas: Tensor,
    *,
    conditional: bool = False,
    channels: int = 3,
    width: int = 128,
    conditioning: str | None = None,
) -> nn.Module:
    """Return a network of any architecture; arguments and errors as :class:`ScoreNetwork` has.

    TypeError where a factory returns no module.
    """
    check_architecture(architecture)
    known = ARCHITECTURES[architecture]
    how: dict[str, Any] = {"conditional": conditional, "conditioning": conditioning}
    how |= {"channels": channels, "width": width}
    if isinstance(known, Architecture):
        return ScoreNetwork(architecture, sigmas, **how)
    network = known.make(sigmas, **how)
    if not isinstance(network, nn.Module):
        raise TypeError(f"architecture = {architecture!r} made {network!r}, which is no nn.Module")
    return network


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
    """Return the number of trainable parameters; arguments as below.

    Those of a table of stages are not made for it.
    """
    if isinstance(ARCHITECTURES[network_settings["architecture"]], Architecture):
        return _shapes_of(network_settings).n_parameters()
    return sum(p.numel() for p in _own(network_settings).parameters() if p.requires_grad)


def _own(network_settings: dict) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return make_network(**network_settings)


def _flops_of_own(network_settings: dict, image_size: int) -> int:
    # Whatever it is made of, torch counts its products, for the seconds that it takes to import.
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(1, network_settings.get("channels", 3), image_size, image_size)
    network = _own(network_settings).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image, torch.zeros(1, dtype=torch.int64))
    return int(counter.get_total_flops())


def forward_flops(network_settings: dict, image_size: int) -> int:
    """Return the FLOPs (2 per multiply-add) of one forward pass of one image.

    Without running it, where the architecture is a table of stages. ``network_settings`` are the
    arguments of :func:`make_network`.
    """
    if not isinstance(ARCHITECTURES[network_settings["architecture"]], Architecture):
        return _flops_of_own(network_settings, image_size)
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
