"""Small feature extractors for Fréchet distances where Inception does not fit.

`digits-cnn` (grey) is trained on the labels of the data set `digits`; `patches-cnn` (RGB) on
telling from which cell of which photograph a patch was cut, through flips, colour jitter and noise;
`cifar-cnn` (RGB) on the ten classes of CIFAR-10, from a JPEG copy of quality 75. They are
registered with torch-fidelity under these names, with the features "64" ("96" for `cifar-cnn`) and
"logits". Trained again by ``python -m scorekit.metrics.train_extractor NAME``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
import torch_fidelity
from torch import nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from scorekit.files import CorruptFile
from scorekit.metrics.spaces import WEIGHTS

__all__ = ["EXTRACTORS", "MIN_SIZE", "CifarCNN", "DigitsCNN", "PatchesCNN", "SmallCNN", "scaled"]

MIN_SIZE = 8
N_CELLS = 2 * 4 * 5  # photographs, rows and columns of a grid on each


class SmallCNN(nn.Module):
    """3x3 convolutions with SiLU, 2x2 pooling after some of them, a spatial mean; a linear head.

    Takes float (B, channels, H, W) in [-1, 1], H and W at least 8; returns features
    (B, widths[-1]) and logits (B, n_classes). `pooled` counts convolutions from 1; `norm` puts
    batch normalisation after each. Fully convolutional: the size is not fixed.
    """

    def __init__(
        self,
        channels: int,
        n_classes: int,
        *,
        widths: tuple[int, ...] = (24, 48, 64),
        pooled: tuple[int, ...] = (2,),
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.depth, self.pooled, self.norm = len(widths), pooled, norm
        for i, width in enumerate(widths, start=1):
            self.add_module(f"conv{i}", nn.Conv2d(channels, width, 3, padding=1))
            if norm:
                self.add_module(f"norm{i}", nn.BatchNorm2d(width))
            channels = width
        self.head = nn.Linear(channels, n_classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"conv{i}")(x)
            if self.norm:
                x = self.get_submodule(f"norm{i}")(x)
            x = F.silu(x)
            if i in self.pooled:
                x = F.avg_pool2d(x, 2)
        features = x.mean(dim=(2, 3))
        return features, self.head(features)


def scaled(images: torch.Tensor) -> torch.Tensor:
    """Return images of bytes as float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1


class _SmallExtractor(FeatureExtractorBase):
    """A trained SmallCNN as a torch-fidelity extractor: uint8 (B, C, H, W) in, a tuple out."""

    channels: int
    n_classes: int
    widths: tuple[int, ...] = (24, 48, 64)
    pooled: tuple[int, ...] = (2,)
    norm = False

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, features_list)
        path = Path(feature_extractor_weights_path or WEIGHTS / f"{name}.safetensors")
        self.network = self.new_network()
        try:
            self.network.load_state_dict(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, RuntimeError) as error:
            raise CorruptFile(path, f"holds no weights for {name} ({error})") from error
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def new_network(cls) -> SmallCNN:
        return SmallCNN(
            cls.channels, cls.n_classes, widths=cls.widths, pooled=cls.pooled, norm=cls.norm
        )

    @classmethod
    def get_provided_features_list(cls) -> tuple[str, ...]:
        return str(cls.widths[-1]), "logits"

    @classmethod
    def get_default_feature_layer_for_metric(cls, metric: str) -> str:
        return "logits" if metric == "isc" else str(cls.widths[-1])

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @classmethod
    def get_dummy_input_for_compile(cls) -> torch.Tensor:
        return torch.zeros(1, cls.channels, 16, 16, dtype=torch.uint8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if x.dtype != torch.uint8 or x.dim() != 4:
            raise ValueError(
                f"{self.name}: {x.dtype} {tuple(x.shape)} given; uint8 (B, C, H, W) is right"
            )
        if self.channels == 3 and x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if x.shape[1] != self.channels or min(x.shape[2:]) < MIN_SIZE:
            kind = "grey (1 channel)" if self.channels == 1 else "RGB or grey"
            raise ValueError(
                f"{self.name}: images {tuple(x.shape[1:])} given; {kind} images of at "
                f"least {MIN_SIZE}x{MIN_SIZE} are right"
            )
        features, logits = self.network(scaled(x))
        both = {str(features.shape[1]): features, "logits": logits}
        return tuple(both[key] for key in self.features_list)


class DigitsCNN(_SmallExtractor):
    """`digits-cnn`: grey images of at least 8x8; 64 features, 10 logits."""

    channels, n_classes = 1, 10


class PatchesCNN(_SmallExtractor):
    """`patches-cnn`: RGB (or, repeated, grey) images of at least 8x8; 64 features, 40 logits."""

    channels, n_classes = 3, N_CELLS


class CifarCNN(_SmallExtractor):
    """`cifar-cnn`: RGB (or, repeated, grey) images of at least 8x8; 96 features, 10 logits.

    The logits are those of CIFAR-10's classes in alphabetical order.
    """

    # The shipped weights: trained on the 50,000 train images of a JPEG copy of CIFAR-10 (quality
    # 75, 4:2:0), with seed 0, 7 epochs, one thread of an AMD EPYC, torch 2.14.1; accuracy on the
    # copy's 10,000 test images 0.7808.

    channels, n_classes = 3, 10
    widths, pooled, norm = (24, 48, 64, 96), (1, 2, 3), True


EXTRACTORS: dict[str, type[_SmallExtractor]] = {
    "digits-cnn": DigitsCNN,
    "patches-cnn": PatchesCNN,
    "cifar-cnn": CifarCNN,
}
for _name, _class in EXTRACTORS.items():
    if _name not in FEATURE_EXTRACTORS_REGISTRY:  # run as a module, this file is imported twice
        torch_fidelity.register_feature_extractor(_name, _class)
