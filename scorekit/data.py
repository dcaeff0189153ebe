"""Data sets by name: `prepare` opens the store of one, and makes it where there is none."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scorekit.files import CorruptFile, set_aside
from scorekit.image_splits import split_images
from scorekit.imagefolder import Square, list_images, listing_digest, read_images
from scorekit.paper_datasets import PAPER_DATASETS, check_image_size
from scorekit.preparation import make_store
from scorekit.store import (
    SPLITS,
    DataError,
    Dataset,
    Encoded,
    KnownDataset,
    Request,
    Source,
    Splits,
    check,
    check_source,
    open_store,
)

log = logging.getLogger("scorekit")

__all__ = [
    "DataError",
    "Dataset",
    "Encoded",
    "Request",
    "Source",
    "Splits",
    "check",
    "digits_split",
    "known_dataset",
    "photo_patches",
    "prepare",
    "register_dataset",
    "to_float",
    "to_uint8",
]


KNOWN: dict[str, KnownDataset] = dict(PAPER_DATASETS)


def register_dataset(
    name: str, spelling: str | None = None, about: str = ""
) -> Callable[[Callable[[Request], Source]], Callable[[Request], Source]]:
    """Register the decorated function as data set `name` (`spelling` is how errors show it)."""

    def register(function: Callable[[Request], Source]) -> Callable[[Request], Source]:
        if name in KNOWN:
            raise ValueError(f"data set {name!r} is already registered")
        KNOWN[name] = KnownDataset(source=function, spelling=spelling or name, about=about)
        return function

    return register


def known_dataset(name: str) -> KnownDataset:
    """Return what is known of "name" or "name:PATH"; DataError where unknown or misspelt."""
    base, colon, argument = name.partition(":")
    if base not in KNOWN:
        spellings = ", ".join(sorted(known.spelling for known in KNOWN.values()))
        raise DataError(f"dataset={name}: unknown; known are {spellings}")
    known = KNOWN[base]
    wrong = {"": bool(colon), ":PATH": not argument, "[:PATH]": bool(colon) and not argument}
    if wrong[known.spelling.removeprefix(base)]:
        raise DataError(f"dataset={name}: write {known.spelling}")
    return known


def prepare(
    name: str,
    root: str | Path,
    *,
    image_size: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    skip_corrupt: bool = False,
) -> Dataset:
    """Open the store of data set `name` under `root`, making it first where there is none.

    For the paper's data sets, "name:PATH" says where they are to be made from (without it:
    `root`/raw/name); with a PATH, a store made from something else is refused. `image_size` is for
    image folders, CelebA, LSUN and FFHQ (4..1024) and must otherwise agree with the data; `seed`
    draws the test split where the data have none. `workers` and `skip_corrupt` are those of
    `make_store`. A damaged store is set aside with a warning and made again. Raises DataError for
    bad input.
    """
    _, _, argument = name.partition(":")
    root = Path(root)
    if seed < 0:
        raise DataError(f"seed={seed}: a whole number from 0 is right")
    if workers is not None and workers < 1:
        raise DataError(f"workers={workers}: a whole number from 1 is right")
    request = Request(argument=argument or None, image_size=image_size, seed=seed, root=root)
    source = known_dataset(name).source(request)
    root.mkdir(parents=True, exist_ok=True)
    store = root / source.store
    for _ in range(3):  # another process may make, or set aside, the store between two of our steps
        if not os.path.lexists(store):
            make_store(source, store, workers=workers, skip_corrupt=skip_corrupt)
        try:
            dataset = open_store(store)
            if argument:
                check_source(store, source)
            return dataset
        except CorruptFile as error:
            try:
                aside = set_aside(store)
            except FileNotFoundError:
                continue  # another process was faster
            log.warning("data store damaged (%s): set aside as %s, made again", error, aside.name)
    raise DataError(f"dataset={name}: {store} was damaged three times in a row; see the log")


def to_float(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Map uint8 images to float32 in [0, 1] (x / 255), any shape."""
    tensor = torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images
    if tensor.dtype != torch.uint8:
        raise ValueError(f"to_float: dtype {tensor.dtype} given; uint8 is right")
    return tensor.to(torch.float32) / 255


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Clamp float images to [0, 1] and round 255 x to the nearest integer, uint8, any shape.

    Raises ValueError where a value is NaN: it has no nearest integer.
    """
    if not images.is_floating_point():
        raise ValueError(f"to_uint8: dtype {images.dtype} given; a float type is right")
    if torch.isnan(images).any():
        raise ValueError(
            f"to_uint8: {int(torch.isnan(images).sum())} of {images.numel()} values "
            "are NaN; finite values are right"
        )
    return (images.clamp(0, 1).to(torch.float32) * 255).round().to(torch.uint8)


def _in_memory(
    name: str,
    request: Request,
    arrays: Callable[[], dict[str, np.ndarray]],
    image_size: int,
    flip: bool,
) -> Source:
    if request.image_size not in (None, image_size):
        raise DataError(f"image_size={request.image_size}: {name} has {image_size}; leave it out")

    # A changed rule gets a new number: stores made by the old one are not taken for new ones.
    return Source(name=name, store=f"{name}-v1", flip=flip, build=lambda: Splits.of(arrays()))


N_DIGITS_TRAIN = 1500


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # slow to import, needed once per store

    images, labels = load_digits(return_X_y=True)
    order = np.random.Generator(np.random.Philox(0)).permutation(len(images))
    images = np.rint(images[order] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return images, labels[order].astype(np.int64)


def digits_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 (N, 1, 8, 8) images and int64 (N,) labels 0..9 of scikit-learn's 1,797 digits.

    Grey values 0..16 become round(v * 255 / 16). In the order of the Philox(0) permutation, the
    first 1,500 are "train" and the other 297 "test".
    """
    images, labels = _digits()
    part = {"train": slice(0, N_DIGITS_TRAIN), "test": slice(N_DIGITS_TRAIN, None)}[split]
    return images[part], labels[part]


@register_dataset("digits", about="8x8 grey, scikit-learn's handwritten digits; embedded")
def _digits_source(request: Request) -> Source:
    """Grey (1, 8, 8) digits; see `digits_split`."""
    return _in_memory(
        "digits",
        request,
        image_size=8,
        flip=False,
        arrays=lambda: {split: digits_split(split)[0] for split in SPLITS},
    )


PATCH = 16
PATCH_BANDS = {"train": (0, 22), "test": (22, 40)}  # columns of each 40
MIN_PATCH_STD = 8.0


def photo_patches(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Cut uint8 (N, 3, 16, 16) patches, and (N, 3) int64 (photo, top, left), from two photographs.

    scikit-learn's china.jpg and flower.jpg are halved by area average (213x320). Of each 40
    columns the first 22 are the train region and the last 18 the test region, so no pixel is in
    both. Patches lie at every column and every 2nd row; those whose grey values (channel mean)
    have a standard deviation below 8 of 255 are left out; order is a Philox(0) permutation.
    """
    from sklearn.datasets import load_sample_image

    first, end = PATCH_BANDS[split]
    patches, places = [], []
    for number, photo in enumerate(("china.jpg", "flower.jpg")):
        image = Image.fromarray(load_sample_image(photo)).crop((0, 0, 640, 426)).reduce(2)
        pixels = np.asarray(image).transpose(2, 0, 1)
        for top in range(0, pixels.shape[1] - PATCH + 1, 2):
            for left in range(pixels.shape[2] - PATCH + 1):
                if left % 40 < first or left % 40 + PATCH > end:
                    continue
                patch = pixels[:, top : top + PATCH, left : left + PATCH]
                if patch.mean(axis=0).std() >= MIN_PATCH_STD:
                    patches.append(patch)
                    places.append((number, top, left))
    order = np.random.Generator(np.random.Philox(0)).permutation(len(patches))
    return np.stack(patches)[order], np.array(places, dtype=np.int64)[order]


@register_dataset("patches", about="16x16, patches of two photographs; embedded")
def _patches_source(request: Request) -> Source:
    """Patches (3, 16, 16) of two photographs; see `photo_patches`."""
    return _in_memory(
        "patches",
        request,
        image_size=PATCH,
        flip=True,
        arrays=lambda: {split: photo_patches(split)[0] for split in SPLITS},
    )


IMAGE_RULES = 2  # which files are images, how they are split and how they are shown


@register_dataset("imagefolder", "imagefolder:PATH", about="any folder, tar or zip of images")
def _imagefolder_source(request: Request) -> Source:
    """Any folder, tar or zip of images, RGB; see `scorekit.imagefolder`."""
    path = Path(os.path.abspath(os.path.expanduser(request.argument or "")))
    size, name = request.image_size, f"imagefolder:{path.name}"
    if size is None:
        raise DataError(f"{name}: image_size is not set; give it as --set image_size=32")
    check_image_size(size)
    # A changed rule gets a new number: stores made by the old one are not taken for new ones.
    key = f"{IMAGE_RULES}\0{path}\0{size}\0{request.seed}\0{listing_digest(path)}"
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:12]

    def build() -> Splits:
        listed = list_images(path)
        names = list(listed)
        if len(names) < 3:
            raise DataError(
                f"imagefolder:{path}: has {len(names)} images; at least 2 to train "
                "and 1 to test are needed"
            )
        splits = split_images(names, request.seed, f"imagefolder:{path}")
        if len(splits["train"]) < 2:
            raise DataError(
                f"imagefolder:{path}: train/ has {len(splits['train'])} image; at "
                "least 2 are needed"
            )
        return Splits(
            shape=(3, size, size),
            n_train=len(splits["train"]),
            n_test=len(splits["test"]),
            images=partial(read_images, path, listed, splits, Square(size=size)),
        )

    basename = re.sub(r"[^A-Za-z0-9_.-]", "_", path.name)[:60]
    return Source(
        name=name, store=f"imagefolder-{basename}-{size}-{digest}", flip=True, build=build
    )


if __name__ == "__main__":
    from scorekit.data_cli import main

    sys.exit(main())
