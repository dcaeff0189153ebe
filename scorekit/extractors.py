"""Two small feature extractors for Fréchet distances where Inception does not fit.

`digits-cnn` (grey) is trained on the labels of the data set `digits`; `patches-cnn` (RGB) on
telling from which cell of which photograph a patch was cut, through flips, colour jitter and noise.
Both are registered with torch-fidelity under these names, with the features "64" and "logits".
Trained again by `python -m scorekit.extractors train NAME`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
import torch_fidelity
from torch import nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from scorekit.data import digits_split, photo_patches
from scorekit.files import CorruptFile, write_bytes
from scorekit.metrics import WEIGHTS

__all__ = ["MIN_SIZE", "DigitsCNN", "PatchesCNN", "SmallCNN", "train"]

MIN_SIZE = 8
CELL = (53, 64)  # rows and columns of a grid cell: 4 x 5 cells a photograph, 213 x 320
N_CELLS = 2 * 4 * 5
EPOCHS = {"digits-cnn": 40, "patches-cnn": 10}


class SmallCNN(nn.Module):
    """Three 3x3 convolutions with SiLU, one 2x2 pooling, a spatial mean: 64 features; a head.

    Takes float (B, channels, H, W) in [-1, 1], H and W at least 8; returns features (B, 64) and
    logits (B, n_classes). Fully convolutional: the size is not fixed.
    """

    def __init__(self, channels: int, n_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 48, 3, padding=1)
        self.conv3 = nn.Conv2d(48, 64, 3, padding=1)
        self.head = nn.Linear(64, n_classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.silu(self.conv1(x))
        x = F.avg_pool2d(F.silu(self.conv2(x)), 2)
        features = F.silu(self.conv3(x)).mean(dim=(2, 3))
        return features, self.head(features)


class _SmallExtractor(FeatureExtractorBase):
    """A trained SmallCNN as a torch-fidelity extractor: uint8 (B, C, H, W) in, a tuple out."""

    channels: int
    n_classes: int

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, features_list)
        path = Path(feature_extractor_weights_path or WEIGHTS / f"{name}.safetensors")
        self.network = SmallCNN(self.channels, self.n_classes)
        try:
            self.network.load_state_dict(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, RuntimeError) as error:
            raise CorruptFile(path, f"holds no weights for {name} ({error})") from error
        self.requires_grad_(False)
        self.eval()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "64", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "64"

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
        features, logits = self.network(x.to(torch.float32) / 127.5 - 1)
        both = {"64": features, "logits": logits}
        return tuple(both[key] for key in self.features_list)


class DigitsCNN(_SmallExtractor):
    """`digits-cnn`: grey images of at least 8x8; 64 features, 10 logits."""

    channels, n_classes = 1, 10


class PatchesCNN(_SmallExtractor):
    """`patches-cnn`: RGB (or, repeated, grey) images of at least 8x8; 64 features, 40 logits."""

    channels, n_classes = 3, N_CELLS


EXTRACTORS: dict[str, type[_SmallExtractor]] = {"digits-cnn": DigitsCNN, "patches-cnn": PatchesCNN}
for _name, _class in EXTRACTORS.items():
    if _name not in FEATURE_EXTRACTORS_REGISTRY:  # run as a module, this file is imported twice
        torch_fidelity.register_feature_extractor(_name, _class)


# --- training -------------------------------------------------------------------------------------


def train(name: str, out: str | Path, *, seed: int = 0) -> float:
    """Train the network of extractor `name` from `seed`, write safetensors `out`.

    Returns the accuracy on the test split; deterministic on one machine and thread count.
    """
    x, y = _labelled(name, "train")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallCNN(EXTRACTORS[name].channels, EXTRACTORS[name].n_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    batch, epochs = 64, EPOCHS[name]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=epochs * (len(x) // batch)
    )
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for index in order[: len(x) // batch * batch].split(batch):
            _, logits = network(_augment(x[index], name, generator))
            optimizer.zero_grad()
            F.cross_entropy(logits, y[index]).backward()
            optimizer.step()
            schedule.step()
    x, y = _labelled(name, "test")
    with torch.no_grad():
        accuracy = (network(x)[1].argmax(dim=1) == y).to(torch.float64).mean().item()
    data = safetensors.torch.save(
        {key: value.contiguous() for key, value in network.state_dict().items()}
    )
    write_bytes(out, data)
    return accuracy


def _labelled(name: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Float images in [-1, 1] and int64 labels of one split."""
    if name == "digits-cnn":
        images, labels = digits_split(split)
    else:
        images, places = photo_patches(split)
        centre = places[:, 1:] + images.shape[2] // 2
        cell = centre // np.array(CELL)
        labels = places[:, 0] * 20 + cell[:, 0] * 5 + cell[:, 1]
    return torch.from_numpy(np.array(images)).float() / 127.5 - 1, torch.from_numpy(labels)


def _augment(x: torch.Tensor, name: str, generator: torch.Generator) -> torch.Tensor:
    """Shifts by a pixel and noise for digits; flips, colour jitter and noise for patches.

    The noise is weak (2% of the range): features blind to noise could not measure it.
    """

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    n = len(x)
    if name == "digits-cnn":
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1), value=-1.0)
        dy, dx = torch.randint(3, (2, n, 1, 1), generator=generator)
        rows = torch.arange(height)[:, None] + dy
        columns = torch.arange(width)[None, :] + dx
        x = padded[torch.arange(n)[:, None, None], 0, rows, columns][:, None]
    else:
        x = torch.where(uniform(0, 1, n, 1, 1, 1) < 0.5, x.flip(3), x)
        x = x * uniform(0.8, 1.2, n, 3, 1, 1) + uniform(-0.15, 0.15, n, 3, 1, 1)
    noise = torch.randn(x.shape, generator=generator)
    return x + uniform(0, 0.04, n, 1, 1, 1) * noise


def main(argv: list[str] | None = None) -> None:
    """Command line of `python -m scorekit.extractors`."""
    parser = argparse.ArgumentParser(prog="python -m scorekit.extractors", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True)
    parse = command.add_parser("train", help="train an extractor and write its weights")
    parse.add_argument("name", choices=sorted(EXTRACTORS))
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--out", type=Path, help="default: the weights in the package")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # the order of sums, and so the weights, depend on the thread count
    out = arguments.out or WEIGHTS / f"{arguments.name}.safetensors"
    accuracy = train(arguments.name, out, seed=arguments.seed)
    print(f"{arguments.name}: accuracy on the test split {accuracy:.4f}; weights in {out}")


if __name__ == "__main__":
    main()
