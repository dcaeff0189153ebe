"""A folder or an archive of images as two lists of names and a stream of squares of one size."""

from __future__ import annotations

import hashlib
import io
import logging
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image

log = logging.getLogger("scorekit")

__all__ = [
    "DataError",
    "image_square",
    "list_images",
    "listing_digest",
    "read_images",
    "split_images",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,
)  # RuntimeError: zipfile on an encrypted member
MAX_PIXELS = 2**26
MAX_FILE_BYTES = 2**28
MAX_TEST_IMAGES = 10_000


class DataError(ValueError):
    """A data set that is unknown or cannot be read: one line that says what would be right."""


def list_images(path: Path) -> list[str]:
    """Return the sorted relative names ("a/b.png") of the images of a folder or archive.

    Files that are no png/jpg/jpeg/bmp/webp/gif by name, and macOS's "._" files, are left out.
    Raises DataError where `path` is absent, unreadable or of another kind.
    """
    if not path.exists():
        raise DataError(f"imagefolder:{path}: no such folder or file")
    if path.is_dir():
        names = [name for name, _ in _walk(path)]
    elif path.name.lower().endswith(".zip"):
        with _archive_errors(path), zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    elif path.name.lower().endswith(TAR_SUFFIXES):
        with _archive_errors(path), tarfile.open(path, "r:*") as archive:
            members = [member for member in archive if _is_image(member.name)]
            names = [member.name for member in members if member.isreg()]
        if len(names) < len(members):
            log.warning(
                "imagefolder:%s: %d links in the archive are not followed: left out",
                path,
                len(members) - len(names),
            )
    else:
        raise DataError(
            f"imagefolder:{path}: is neither a folder nor a .zip, {', '.join(TAR_SUFFIXES)} file"
        )
    # A name that is twice in an archive is one image: the last one, as on extraction.
    return sorted({_normal(name) for name in names if _is_image(name)})


def listing_digest(path: Path) -> str:
    """Return a SHA-256 that changes when a file of the folder (or the archive) is changed.

    From names, sizes and modification times: nothing is read, and an archive is one file.
    """
    if path.is_dir():
        entries = [(name, file.stat()) for name, file in sorted(_walk(path)) if _is_image(name)]
    elif path.exists():
        entries = [("", path.stat())]
    else:
        raise DataError(f"imagefolder:{path}: no such folder or file")
    digest = hashlib.sha256()
    for name, stat in entries:
        line = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def split_images(names: list[str], seed: int) -> dict[str, list[str]]:
    """Split sorted image names into {"train": [...], "test": [...]}, each sorted.

    Top-level `train/` and `test/` folders (or those below one common top folder) are the splits;
    otherwise a tenth (at least 1, at most 10,000), drawn with `seed`, is the test split.
    """
    parts = [PurePosixPath(name).parts for name in names]
    for depth in (0, 1):
        if depth == 1 and len({part[0] for part in parts}) != 1:
            break
        splits = {
            split: [
                name
                for name, part in zip(names, parts, strict=True)
                if len(part) > depth + 1 and part[depth] == split
            ]
            for split in ("train", "test")
        }
        if splits["train"] and splits["test"]:
            left_out = len(names) - len(splits["train"]) - len(splits["test"])
            if left_out:
                log.warning("%d images outside train/ and test/ are left out", left_out)
            return splits
    n_test = min(MAX_TEST_IMAGES, max(1, len(names) // 10))
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(names))
    chosen = set(order[:n_test].tolist())
    return {
        "train": [name for i, name in enumerate(names) if i not in chosen],
        "test": [name for i, name in enumerate(names) if i in chosen],
    }


def read_images(path: Path, wanted: set[str], image_size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, uint8 (3, image_size, image_size)) for each wanted name, in the archive's order.

    One image is in memory at a time; nothing is extracted to disk. Raises DataError naming the
    image that cannot be decoded.
    """
    if path.is_dir():
        for name in sorted(wanted):
            try:
                with open(path / name, "rb") as file:
                    square = image_square(file, image_size, str(path / name))
            except OSError as error:
                raise DataError(f"{path / name}: cannot be read ({error})") from error
            yield name, square
    elif path.name.lower().endswith(".zip"):
        with _archive_errors(path), zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir() and _normal(info.filename) in wanted:
                    with archive.open(info) as file:
                        yield (
                            _normal(info.filename),
                            image_square(file, image_size, f"{path}: {info.filename}"),
                        )
    else:
        with _archive_errors(path), tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.isreg() and _normal(member.name) in wanted:
                    stream = archive.extractfile(member)
                    assert stream is not None  # for a regular member
                    yield (
                        _normal(member.name),
                        image_square(stream, image_size, f"{path}: {member.name}"),
                    )


def image_square(file: IO[bytes], image_size: int, name: str) -> np.ndarray:
    """Decode one image (first frame) to RGB uint8 (3, image_size, image_size).

    The smaller side is resized to `image_size` (Lanczos, antialiased; untouched where it is that
    already), then the centre is cropped. Transparency is dropped and EXIF rotation not applied.
    Raises DataError that begins with `name`: not an image, damaged, over 2^26 pixels, 16-bit.
    """
    # Whole file in memory: image decoders seek backwards, which restarts a compressed archive.
    data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{name}: over {MAX_FILE_BYTES // 2**20} MiB for one image: refused")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size  # from the header: no pixel is decoded yet
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width}x{height} pixels")
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{name}: has {image.mode} pixels; convert it to 8 bits a channel")
            rgb = image.convert("RGB")
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: over {MAX_PIXELS} pixels: refused ({error})") from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise DataError(f"{name}: cannot be decoded as an image ({error})") from error
    if min(width, height) != image_size:
        scale = image_size / min(width, height)
        size = (max(image_size, round(width * scale)), max(image_size, round(height * scale)))
        rgb = rgb.resize(size, Image.Resampling.LANCZOS)
    left, top = (rgb.width - image_size) // 2, (rgb.height - image_size) // 2
    square = np.asarray(rgb.crop((left, top, left + image_size, top + image_size)))
    return square.transpose(2, 0, 1)


def _is_image(name: str) -> bool:
    base = PurePosixPath(name).name
    return base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith("._")


def _normal(name: str) -> str:
    return "/".join(part for part in PurePosixPath(name).parts if part not in ("/", "."))


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    def unreadable(error: OSError) -> None:
        raise DataError(f"imagefolder:{folder}: cannot be read ({error})") from error

    seen: set[str] = set()
    for here, directories, files in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link back up the tree
            directories.clear()
            continue
        seen.add(real)
        for file in files:
            yield (Path(here) / file).relative_to(folder).as_posix(), Path(here) / file


class _archive_errors:
    """Turn what archive readers raise on damaged bytes into a DataError naming the archive."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ARCHIVE_ERRORS) and not isinstance(error, DataError):
            raise DataError(
                f"imagefolder:{self.path}: is not a readable archive "
                f"({type(error).__name__}: {error})"
            ) from error
