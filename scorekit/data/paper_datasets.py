"""The data sets of Song & Ermon (2020, App. B.2) and MNIST by name, with their preprocessing.

The paper does not name a filter: resizing is antialiased bilinear, the default of torchvision's
Resize.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from scorekit.data.array_files import read_cifar10, read_mnist
from scorekit.data.image_splits import draw_test, split_folders
from scorekit.data.imagefolder import (
    MAX_PIXELS,
    TAR_SUFFIXES,
    Square,
    list_images,
    listing_digest,
    read_images,
)
from scorekit.data.lsun import lsun_splits
from scorekit.data.store import DataError, KnownDataset, Request, Source, Splits
from scorekit.files import sha256_file

log = logging.getLogger("scorekit")

__all__ = ["PAPER_DATASETS", "check_image_size"]

CELEBA_CROP = 140
PARTITION = "list_eval_partition.txt"
BILINEAR = Image.Resampling.BILINEAR


def check_image_size(size: int) -> None:
    """Raise DataError unless 4 <= size <= 1024."""
    if not 4 <= size <= 1024:
        raise DataError(f"image_size={size}: a whole number from 4 to 1024 is right")


def _image_files(
    path: Path, listed: dict[str, int], splits: dict, square: Square, partition: str = ""
) -> Splits:
    return Splits(
        shape=(3, square.size, square.size),
        n_train=len(splits["train"]),
        n_test=len(splits["test"]),
        images=partial(read_images, path, listed, splits, square),
        version=f"{square} {listing_digest(path)} {partition}".rstrip(),
    )


def _cifar10_jpeg(path: Path, size: int, seed: int) -> Splits:
    """Read train/<class>/NNNN.jpg and test/<class>/NNNN.jpg of a folder or archive."""
    path = _archive_within(path)
    listed = list_images(path)
    splits = split_folders(list(listed), str(path))
    if splits is None:
        raise DataError(f"{path}: has no images in both train/ and test/")
    return _image_files(path, listed, splits, Square(size=size, sides=(size, size)))


def _celeba(path: Path, size: int, seed: int) -> Splits:
    """Read the aligned images: partition 0 is train, 2 is test, 1 is left out."""
    base = path
    for name in ("img_align_celeba.zip", "img_align_celeba"):
        if (base / name).exists():
            path = base / name
            break
    file = next((f for f in (base / PARTITION, base.parent / PARTITION) if f.is_file()), None)
    if file is None:
        raise DataError(f"{base / PARTITION}: no such file; CelebA's partition is needed")
    listed = list_images(path)
    by_name = {PurePosixPath(name).name: name for name in listed}
    splits: dict[str, list[str]] = {"train": [], "test": []}
    missing = []
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        name, *part = line.split() or ("", "1")
        if len(part) != 1 or part[0] not in ("0", "1", "2"):
            raise DataError(f"{file}: line {number} is {line[:40]!r}; 000001.jpg 0 would be right")
        if part[0] != "1":
            if name in by_name:
                splits["train" if part[0] == "0" else "test"].append(by_name[name])
            else:
                missing.append(name)
    if missing:
        raise DataError(f"{path}: lacks {len(missing)} images of {file.name}, {missing[0]} first")
    square = Square(size=size, crop=CELEBA_CROP, resample=BILINEAR, sides=(CELEBA_CROP, MAX_PIXELS))
    return _image_files(path, listed, splits, square, sha256_file(file))


def _ffhq(path: Path, size: int, seed: int) -> Splits:
    """Read any folder or archive of the faces: a tenth, drawn with the seed, is the test split."""
    path = _archive_within(path)
    listed = list_images(path)
    splits = draw_test(list(listed), max(1, len(listed) // 10), seed)
    return _image_files(path, listed, splits, _scaled(size))


def _lsun(category: str) -> Callable[[Path, int, int], Splits]:
    return lambda path, size, seed: lsun_splits(category, path, _scaled(size))


def _scaled(size: int) -> Square:
    return Square(size=size, resample=BILINEAR, sides=(size, MAX_PIXELS))


def _archive_within(path: Path) -> Path:
    """Return the only archive of a folder that has no other entries, or else the path itself."""
    entries = list(path.iterdir()) if path.is_dir() else []
    is_archive = len(entries) == 1 and entries[0].name.lower().endswith((".zip", *TAR_SUFFIXES))
    return entries[0] if is_archive else path


def _known(
    name: str,
    image_size: int,
    splits: Callable[[Path, int, int], Splits],
    *,
    about: str,
    files: str,
    place: str,
    counts: tuple[int, int],
    any_size: bool = False,
    seeded: bool = False,
    flip: bool = True,
    download: Callable[[Path], None] | None = None,
) -> KnownDataset:
    def source(request: Request) -> Source:
        size = request.image_size or image_size
        if size != image_size and not any_size:
            raise DataError(f"image_size={size}: {name} has {image_size}; leave it out")
        check_image_size(size)
        standard = request.root / "raw" / name
        path = Path(os.path.abspath(os.path.expanduser(request.argument or standard)))

        def build() -> Splits:
            if request.argument is None and not path.exists():
                or_download = ", or add --download" if download else ""
                raise DataError(
                    f"dataset={name}: is not prepared under {request.root}; get {files} from "
                    f"{place}, put it into {standard} (or anywhere, with --source PATH), and run "
                    f"python -m scorekit.data prepare {name} --root {request.root}{or_download}"
                )
            built = splits(path, size, request.seed)
            found = (built.n_train, built.n_test)
            if min(found) < 1:
                raise DataError(f"{path}: has {found[0]} images to train and {found[1]} to test")
            if found != counts:
                log.warning("dataset=%s: %d + %d images; published: %d + %d", name, *found, *counts)
            return built

        # A changed rule gets a new number: stores made by the old one are not taken for new ones.
        store = f"{name}-{size}{f'-seed{request.seed}' if seeded else ''}-v1"
        return Source(name=name, store=store, flip=flip, build=build, path=path)

    return KnownDataset(
        source=source,
        spelling=f"{name}[:PATH]",
        about=about,
        place=f"{files} from {place}",
        counts=counts,
        download=download,
    )


def _download_cifar10(folder: Path) -> None:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    # Not CIFAR10(download=True): that would unpickle the batches with the plain unpickler.
    download_url(CIFAR10.url, folder, CIFAR10.filename, CIFAR10.tgz_md5)


def _download_mnist(folder: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(folder, download=True)


def _known_lsun(name: str, size: int, n_train: int) -> KnownDataset:
    return _known(
        name,
        size,
        _lsun(name),
        any_size=True,
        about=f"{size}x{size}, LSUN {name}",
        files=f"{name}_train_lmdb.zip and {name}_val_lmdb.zip, unpacked,",
        place="https://www.yf.io/p/lsun",
        counts=(n_train, 300),
    )


PAPER_DATASETS: dict[str, KnownDataset] = {
    "cifar10": _known(
        "cifar10",
        32,
        lambda path, size, seed: Splits.of(read_cifar10(path)),
        about="32x32, CIFAR-10",
        files="cifar-10-python.tar.gz",
        place="https://www.cs.toronto.edu/~kriz/cifar.html",
        counts=(50_000, 10_000),
        download=_download_cifar10,
    ),
    "cifar10-jpeg": _known(
        "cifar10-jpeg",
        32,
        _cifar10_jpeg,
        about="32x32, CIFAR-10 after JPEG compression: not the paper's data",
        files="a folder or archive of train/<class>/NNNN.jpg and test/<class>/NNNN.jpg",
        place="who made such a copy",
        counts=(50_000, 10_000),
    ),
    "mnist": _known(
        "mnist",
        28,
        lambda path, size, seed: Splits.of(read_mnist(path)),
        about="28x28 grey, MNIST",
        files="train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz",
        place="http://yann.lecun.com/exdb/mnist",
        counts=(60_000, 10_000),
        flip=False,
        download=_download_mnist,
    ),
    "celeba": _known(
        "celeba",
        64,
        _celeba,
        any_size=True,
        about="64x64, CelebA, aligned, centre crop 140",
        files=f"img_align_celeba.zip and {PARTITION}",
        place="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        counts=(162_770, 19_962),
    ),
    "church_outdoor": _known_lsun("church_outdoor", 96, 126_227),
    "bedroom": _known_lsun("bedroom", 128, 3_033_042),
    "tower": _known_lsun("tower", 128, 708_264),
    "ffhq": _known(
        "ffhq",
        256,
        _ffhq,
        any_size=True,
        seeded=True,
        about="256x256, FFHQ, a tenth drawn as test split",
        files="the images of 256x256 or more, a folder or zip,",
        place="https://github.com/NVlabs/ffhq-dataset",
        counts=(63_000, 7_000),
    ),
}
