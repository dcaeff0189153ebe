"""A folder or an archive of images as two lists of names and a stream of squares to decode."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image

from scorekit.store import SPLITS, DataError, Encoded

log = logging.getLogger("scorekit")

__all__ = [
    "Square",
    "decode_image",
    "draw_test",
    "image_square",
    "list_images",
    "listing_digest",
    "read_images",
    "split_folders",
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


@dataclass(frozen=True, kw_only=True)
class Square:
    """How an image becomes a square: centre crop of `crop`, if any, then smaller side to `size`.

    Resizing is PIL's, antialiased by `resample`; what is longer then is cropped around the centre.
    Images with a side outside `sides` (pixels) are refused.
    """

    size: int
    crop: int | None = None
    resample: Image.Resampling = Image.Resampling.LANCZOS
    sides: tuple[int, int] = (1, MAX_PIXELS)


def list_images(path: Path) -> dict[str, int]:
    """Return the relative names ("a/b.png") of a folder's or archive's images, in sorted order.

    The values are the places of the images in an archive, for `read_images`. Files that are no
    png/jpg/jpeg/bmp/webp/gif by name, and macOS's "._" files, are left out. Raises DataError where
    `path` is absent, unreadable or of another kind.
    """
    if not path.exists():
        raise DataError(f"{path}: no such folder or file")
    if path.is_dir():
        places = {name: 0 for name, _ in _walk(path)}
    elif path.name.lower().endswith(".zip"):
        with _archive_errors(path), zipfile.ZipFile(path) as archive:
            places = {
                info.filename: info.header_offset
                for info in archive.infolist()
                if not info.is_dir()
            }
    elif path.name.lower().endswith(TAR_SUFFIXES):
        with _archive_errors(path), tarfile.open(path, "r:*") as archive:
            places, links = {}, 0
            for member in _members(archive):
                if member.isreg():
                    places[member.name] = member.offset
                elif _is_image(member.name):
                    links += 1
        if links:
            log.warning("%s: %d links in the archive are not followed: left out", path, links)
    else:
        raise DataError(f"{path}: is neither a folder nor a .zip, {', '.join(TAR_SUFFIXES)} file")
    # A name that is twice in an archive is one image: the last one, as on extraction.
    return dict(sorted({_normal(n): place for n, place in places.items() if _is_image(n)}.items()))


def listing_digest(path: Path) -> str:
    """Return a SHA-256 that changes when a file of the folder (or the archive) is changed.

    From names, sizes and modification times: nothing is read, and an archive is one file.
    """
    if path.is_dir():
        entries = [(name, file.stat()) for name, file in sorted(_walk(path)) if _is_image(name)]
    elif path.exists():
        entries = [("", path.stat())]
    else:
        raise DataError(f"{path}: no such folder or file")
    digest = hashlib.sha256()
    for name, stat in entries:
        line = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def split_folders(names: list[str]) -> dict[str, list[str]] | None:
    """Return the names under top-level `train/` and `test/` (or those below one common folder).

    None where there are not both.
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
            for split in SPLITS
        }
        if splits["train"] and splits["test"]:
            left_out = len(names) - len(splits["train"]) - len(splits["test"])
            if left_out:
                log.warning("%d images outside train/ and test/ are left out", left_out)
            return splits
    return None


def draw_test(names: list[str], n_test: int, seed: int) -> dict[str, list[str]]:
    """Split names into {"train": [...], "test": [...]}, each in their order; the test is drawn."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(names))
    chosen = set(order[:n_test].tolist())
    return {
        "train": [name for i, name in enumerate(names) if i not in chosen],
        "test": [name for i, name in enumerate(names) if i in chosen],
    }


def split_images(names: list[str], seed: int) -> dict[str, list[str]]:
    """Split sorted image names into {"train": [...], "test": [...]}, each sorted.

    By `split_folders` where there are such; otherwise a tenth (at least 1, at most 10,000), drawn
    with `seed`, is the test split.
    """
    n_test = min(MAX_TEST_IMAGES, max(1, len(names) // 10))
    return split_folders(names) or draw_test(names, n_test, seed)


def read_images(
    path: Path, listed: Mapping[str, int], splits: dict[str, list[str]], square: Square, start: int
) -> Generator[tuple[str, int, Encoded]]:
    """Yield (split, index, image to decode) for each name of `splits`, in the archive's order.

    `listed` is what `list_images` gave; the first `start` images are passed over. A folder or zip
    is read when an image is decoded, a tar on the way; nothing is extracted to disk.
    """
    place = {name: (split, i) for split in SPLITS for i, name in enumerate(splits[split])}

    def encoded(name: str, shown: str, opener: Callable[[], IO[bytes]], held: int = 0) -> Encoded:
        return Encoded(
            name=name, decode=partial(decode_image, opener, shown, square), held_bytes=held
        )

    def wanted(name: str, offset: int) -> bool:
        return _normal(name) in place and listed[_normal(name)] == offset

    if path.is_dir():
        for name in sorted(place)[start:]:
            yield *place[name], encoded(name, str(path / name), partial(io.FileIO, path / name))
    elif path.name.lower().endswith(".zip"):
        with _archive_errors(path):
            archive = zipfile.ZipFile(path)  # read by threads; closed with the last image
        infos = (i for i in archive.infolist() if wanted(i.filename, i.header_offset))
        for info in itertools.islice(infos, start, None):
            name = _normal(info.filename)
            shown = f"{path}: {info.filename}"
            yield *place[name], encoded(name, shown, partial(archive.open, info))
    else:
        with _archive_errors(path), tarfile.open(path, "r:*") as tar:
            members = (m for m in _members(tar) if m.isreg() and wanted(m.name, m.offset))
            for member in itertools.islice(members, start, None):
                stream = tar.extractfile(member)
                assert stream is not None  # for a regular member
                data = stream.read(MAX_FILE_BYTES + 1)
                opener = partial(io.BytesIO, data)
                name, shown = _normal(member.name), f"{path}: {member.name}"
                yield *place[name], encoded(name, shown, opener, len(data))


def decode_image(opener: Callable[[], IO[bytes]], shown: str, square: Square) -> np.ndarray:
    """Return `image_square` of what `opener()` gives; what cannot be read is a DataError too."""
    try:
        with opener() as file:
            return image_square(file, square, shown)
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{shown}: cannot be read ({error})") from error


def image_square(file: IO[bytes], square: Square, name: str) -> np.ndarray:
    """Decode one image (first frame) to RGB uint8 (3, size, size), as `square` says.

    An image that has the size already is not resampled. Transparency is dropped and EXIF rotation
    not applied. Raises DataError that begins with `name`: not an image, damaged, of other sides
    than permitted, over 2^26 pixels, 16-bit.
    """
    # Whole file in memory: image decoders seek backwards, which restarts a compressed archive.
    data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{name}: over {MAX_FILE_BYTES // 2**20} MiB for one image: refused")
    low, high = square.sides
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size  # from the header: no pixel is decoded yet
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width}x{height} pixels")
            if not low <= min(width, height) <= max(width, height) <= high:
                wanted = f"{low}" if low == high else f"at least {low}"
                raise DataError(f"{name}: is {width}x{height}; sides of {wanted} are needed")
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{name}: has {image.mode} pixels; convert it to 8 bits a channel")
            rgb = image.convert("RGB")
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: over {MAX_PIXELS} pixels: refused ({error})") from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise DataError(f"{name}: cannot be decoded as an image ({error})") from error
    if square.crop is not None:
        rgb = _centre(rgb, square.crop)
    if (side := min(rgb.size)) != square.size:
        scale = square.size / side
        width, height = (max(square.size, round(length * scale)) for length in rgb.size)
        rgb = rgb.resize((width, height), square.resample)
    return np.asarray(_centre(rgb, square.size)).transpose(2, 0, 1)


def _centre(image: Image.Image, size: int) -> Image.Image:
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members one by one; tarfile would keep each of them in memory."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]
        yield member


def _is_image(name: str) -> bool:
    base = PurePosixPath(name).name
    return base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith("._")


def _normal(name: str) -> str:
    return "/".join(part for part in PurePosixPath(name).parts if part not in ("/", "."))


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    def unreadable(error: OSError) -> None:
        raise DataError(f"{folder}: cannot be read ({error})") from error

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
                f"{self.path}: is not a readable archive ({type(error).__name__}: {error})"
            ) from error
