"""Images that are there without a download: digits, and patches of two photographs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

from scorekit.data.store import SPLITS, DataError, KnownDataset, Request, Source, Splits

__all__ = ["EMBEDDED", "digits_split", "photo_patches"]

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


def _known(
    name: str,
    image_size: int,
    split: Callable[[str], tuple[np.ndarray, np.ndarray]],
    *,
    about: str,
    flip: bool,
) -> KnownDataset:
    def source(request: Request) -> Source:
        size = request.image_size
        if size not in (None, image_size):
            raise DataError(f"image_size={size}: {name} has {image_size}; leave it out")

        def build() -> Splits:
            return Splits.of({part: split(part)[0] for part in SPLITS})

        # A changed rule gets a new number: stores made by the old one are not taken for new ones.
        return Source(name=name, store=f"{name}-v1", flip=flip, build=build)

    return KnownDataset(source=source, spelling=name, about=f"{about}; embedded")


EMBEDDED: dict[str, KnownDataset] = {
    "digits": _known(
        "digits", 8, digits_split, about="8x8 grey, scikit-learn's handwritten digits", flip=False
    ),
    "patches": _known(
        "patches", PATCH, photo_patches, about="16x16, patches of two photographs", flip=True
    ),
}
