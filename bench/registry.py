"""What a benchmark case is, and the registry that every case enters by its decorator."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scorekit.runtime.compilation import compiled

Group = Literal["kernel", "network", "training", "sampler", "data", "launcher", "report"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a case is built: ``folder`` is empty and its own; ``tiny`` asks for a body that runs in
    a moment, with small shapes and nothing compiled."""

    device: torch.device
    folder: Path
    tiny: bool = False

    def size(self, full: int, tiny: int) -> int:
        """Return the size that applies."""
        return tiny if self.tiny else full

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` compiled for fixed shapes, or as it is where tiny."""
        return compiled(function, enable=not self.tiny, device=self.device.type)

    def normal(self, *shape: int, seed: int = 0) -> Tensor:
        """Return float32 standard normal numbers, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.device)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two ways to do one job, as functions without arguments that return their result.

    ``reference`` is None where time is judged by itself. ``random`` says that the results agree in
    shape and dtype only. ``bytes_moved`` and ``flops`` are what the job needs at least, each input
    read once and each output written once, for the roofline; ``images`` counts what one call makes.
    """

    candidate: Callable[[], Any]
    reference: Callable[[], Any] | None = None
    random: bool = False
    bytes_moved: int | None = None
    flops: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    images: float | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A named benchmark; ``build`` makes inputs and functions, outside of every timing."""

    name: str
    group: Group
    build: Callable[[Setting], Pair]


REGISTRY: dict[str, Case] = {}


def case(name: str, group: Group) -> Callable[[Callable[[Setting], Pair]], None]:
    """Enter the decorated function as the case ``name``; ValueError where the name is taken."""

    def register(build: Callable[[Setting], Pair]) -> None:
        if name in REGISTRY:
            raise ValueError(f"case {name!r} is there already; choose another name")
        REGISTRY[name] = Case(name=name, group=group, build=build)

    return register


def n_bytes(*tensors: Tensor) -> int:
    """Return the bytes that the tensors hold together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
