"""``python -m scorekit.metrics.train_extractor NAME``: train a small feature extractor."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from tqdm import tqdm

from scorekit.data.embedded import digits_split, photo_patches
from scorekit.data.imagefolder import Square, list_images, read_images
from scorekit.data.store import DataError
from scorekit.files import write_bytes
from scorekit.metrics.extractors import EXTRACTORS, scaled
from scorekit.metrics.spaces import WEIGHTS

__all__ = ["EPOCHS", "labelled_images", "train"]

CELL = (53, 64)  # rows and columns of a grid cell: 4 x 5 cells a photograph, 213 x 320
CIFAR_SIZE, CIFAR_CLASSES = 32, 10
#: Those of the shipped weights.
EPOCHS = {"digits-cnn": 40, "patches-cnn": 10, "cifar-cnn": 7}

Labelled = tuple[torch.Tensor, torch.Tensor]  # uint8 (n, C, H, W), int64 (n,)


def train(
    name: str,
    out: str | Path,
    *,
    source: str | Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    device: str = "cpu",
) -> float:
    """Train the network of extractor `name` from `seed`, write safetensors `out`.

    `source` is for `cifar-cnn` alone: see :func:`labelled_images`. Returns the accuracy on the test
    split; deterministic on one CPU and thread count. Raises DataError for what will not do, before
    training.
    """
    if name == "cifar-cnn" and source is None:
        raise DataError(f"source=None: {name} is trained on a folder or archive of labelled images")
    if name != "cifar-cnn" and source is not None:
        raise DataError(f"source={source}: {name} takes none, its images are in the package")
    if epochs is not None and epochs < 1:
        raise DataError(f"epochs={epochs}: a whole number from 1 is right")
    if device == "cuda" and not torch.cuda.is_available():
        raise DataError("device=cuda: torch sees no CUDA device here; cpu is right")
    splits = _labelled(name) if source is None else labelled_images(source)
    x, y = splits["train"]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = EXTRACTORS[name].new_network().to(device)
    if network.norm:  # channels last: the faster layout for it; others keep the bits they have
        network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    batch, epochs = min(64, len(x)), epochs or EPOCHS[name]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=epochs * (len(x) // batch)
    )
    for _ in tqdm(range(epochs), desc=name, unit="epoch", disable=None):
        order = torch.randperm(len(x), generator=generator)
        for index in order[: len(x) // batch * batch].split(batch):
            images = _augment(scaled(x[index]), name, generator)
            _, logits = network(images.to(device))
            optimizer.zero_grad()
            F.cross_entropy(logits, y[index].to(device)).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    x, y = splits["test"]
    with torch.no_grad():
        predicted = [network(scaled(part).to(device))[1].argmax(dim=1) for part in x.split(1000)]
    accuracy = (torch.cat(predicted).cpu() == y).to(torch.float64).mean().item()
    data = safetensors.torch.save(
        {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
    )
    write_bytes(out, data)
    return accuracy


def labelled_images(source: str | Path) -> dict[str, Labelled]:
    """Read {"train": ..., "test": ...}, uint8 (n, 3, 32, 32) with int64 labels, from `source`.

    `source` is a folder or archive of `train/<class>/` and `test/<class>/`; a label is the place of
    the class among the ten sorted class names. Raises DataError where the folders are others, or
    an image cannot be read.
    """
    source = Path(source)
    listed = list_images(source)
    splits: dict[str, list[str]] = {"train": [], "test": []}
    for name in listed:
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and parts[-3] in splits:
            splits[parts[-3]].append(name)
    classes = {split: sorted({_class_of(n) for n in names}) for split, names in splits.items()}
    if classes["train"] != classes["test"] or len(classes["train"]) != CIFAR_CLASSES:
        raise DataError(
            f"source={source}: holds images of {len(classes['train'])} classes in train/<class>/ "
            f"and of {len(classes['test'])} in test/<class>/; the same {CIFAR_CLASSES} are right"
        )
    images = {
        split: np.empty((len(names), 3, CIFAR_SIZE, CIFAR_SIZE), np.uint8)
        for split, names in splits.items()
    }
    for split, index, image in read_images(source, listed, splits, Square(size=CIFAR_SIZE), 0):
        images[split][index] = image.decode()
    return {
        split: (
            torch.from_numpy(images[split]),
            torch.tensor([classes[split].index(_class_of(name)) for name in names]),
        )
        for split, names in splits.items()
    }


def _class_of(name: str) -> str:
    return PurePosixPath(name).parts[-2]


def _labelled(name: str) -> dict[str, Labelled]:
    """The labelled images of both splits that the package itself has."""
    splits = {}
    for split in ("train", "test"):
        if name == "digits-cnn":
            images, labels = digits_split(split)
        else:
            images, places = photo_patches(split)
            centre = places[:, 1:] + images.shape[2] // 2
            cell = centre // np.array(CELL)
            labels = places[:, 0] * 20 + cell[:, 0] * 5 + cell[:, 1]
        splits[split] = torch.from_numpy(np.array(images)), torch.from_numpy(labels)
    return splits


def _augment(x: torch.Tensor, name: str, generator: torch.Generator) -> torch.Tensor:
    """Shifts for digits; flips and colour jitter for patches; flips and shifts for CIFAR-10; noise.

    The noise is weak (2% of the range): features blind to noise could not measure it. Nor is the
    colour of CIFAR-10's images changed: samples of other colours must be far from them.
    """

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def flipped(x: torch.Tensor) -> torch.Tensor:
        return torch.where(uniform(0, 1, n, 1, 1, 1) < 0.5, x.flip(3), x)

    def shifted(padded: torch.Tensor, by: int) -> torch.Tensor:
        height, width = x.shape[2:]
        dy, dx = torch.randint(2 * by + 1, (2, n, 1, 1, 1), generator=generator)
        rows = torch.arange(height)[:, None] + dy
        columns = torch.arange(width)[None, :] + dx
        planes = torch.arange(x.shape[1])[:, None, None]
        return padded[torch.arange(n)[:, None, None, None], planes, rows, columns]

    n = len(x)
    if name == "digits-cnn":
        x = shifted(F.pad(x, (1, 1, 1, 1), value=-1.0), 1)
    elif name == "cifar-cnn":
        x = shifted(F.pad(flipped(x), (2, 2, 2, 2), mode="reflect"), 2)
    else:
        x = flipped(x)
        x = x * uniform(0.8, 1.2, n, 3, 1, 1) + uniform(-0.15, 0.15, n, 3, 1, 1)
    noise = torch.randn(x.shape, generator=generator)
    return x + uniform(0, 0.04, n, 1, 1, 1) * noise


def main(argv: list[str] | None = None) -> int:
    """Train one from the command line; returns 0, or 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m scorekit.metrics.train_extractor",
        description="Train a small feature extractor and write its weights.",
    )
    parser.add_argument("name", choices=sorted(EXTRACTORS))
    parser.add_argument(
        "--source",
        type=Path,
        help="for cifar-cnn: a folder or archive of train/<class>/ and test/<class>/ images",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="default: those of the shipped weights")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="cpu",
        help="default: cpu, as for the shipped weights; auto: cuda where there is one",
    )
    parser.add_argument("--out", type=Path, help="default: the weights in the package")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # the order of sums, and so the weights, depend on the thread count
    out = arguments.out or WEIGHTS / f"{arguments.name}.safetensors"
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        accuracy = train(
            arguments.name,
            out,
            source=arguments.source,
            seed=arguments.seed,
            epochs=arguments.epochs,
            device=device,
        )
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{arguments.name}: accuracy on the test split {accuracy:.4f}; weights in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
