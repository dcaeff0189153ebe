"""A folder or an archive of images: their names, and a stream of squares to decode."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from scorekit.data.image_splits import split_of
from scorekit.data.store import SPLITS, DataError, Encoded

log = logging.getLogger("scorekit")

__all__ = [
    "Square",
    "decode_image",
    "image_square",
    "list_images",
    "listing_digest",
    "read_images",
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
MAX_ASPECT = 16  # what is longer is cut to its middle before it is resized
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")  # no other decoder is tried, nor program started
BACKGROUND = (255, 255, 255, 255)
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # of EXIF's orientations
# Where cameras' disks, systems and photo managers keep copies; so do all folders with a dot.
TOOL_FOLDERS = {
    "__macosx",
    "@eadir",
    "@recycle",
    "@tmp",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "lost+found",
    "system volume information",
}


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


def list_images(path: str | Path) -> dict[str, int]:
    """Return the relative names ("a/b.png") of a folder's or archive's images, in sorted order.

    The values are the places of the images in an archive, for `read_images`. Files that are no
    png/jpg/jpeg/bmp/webp/gif by name are left out, and so is what tools keep beside images, hidden
    or in folders of their own; a warning counts them. A folder's links are followed, and one file
    is one image, whatever names it has; an archive's links are not. Raises DataError where `path`
    is absent, unreadable or of another kind.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such folder or file")
    if path.is_dir():
        names, left_out = _walk(path)
        places = dict.fromkeys(names, 0)
    else:
        places, left_out = {}, Counter()
        for name, place, is_file in _members_of(path):
            if reason := _reason_to_leave_out(name) or ("" if is_file else "links"):
                left_out[reason] += 1
            else:  # a name that is twice is one image: the last one, as on extraction
                places[name] = place
    if left_out:
        counts = [f"{n:,} {reason}" for reason, n in left_out.most_common()]
        log.warning("%s: left out: %s", path, ", ".join(counts[:9] + ["…"] * (len(counts) > 9)))
    return dict(sorted(places.items()))


def _members_of(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (name, place, whether it is a file and no link) of an archive's members."""
    if path.name.lower().endswith(".zip"):
        with _archive_errors(path), zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not _zip_name(info).endswith("/"):
                    is_link = stat.S_ISLNK(info.external_attr >> 16)
                    yield _normal(_zip_name(info)), info.header_offset, not is_link
    elif path.name.lower().endswith(TAR_SUFFIXES):
        with _archive_errors(path), tarfile.open(path, "r:*") as tar:
            for member in _members(tar):
                if not member.isdir():
                    yield _normal(member.name), member.offset, member.isreg()
    else:
        raise DataError(f"{path}: is neither a folder nor a .zip, {', '.join(TAR_SUFFIXES)} file")


def listing_digest(path: str | Path) -> str:
    """Return a SHA-256 that changes when an image of the folder (or the archive) is changed.

    From names, sizes and modification times: nothing is read, and an archive is one file.
    """
    path = Path(path)
    if path.is_dir():
        entries = [(name, (path / name).stat()) for name in sorted(_walk(path)[0])]
    elif path.exists():
        entries = [("", path.stat())]
    else:
        raise DataError(f"{path}: no such folder or file")
    digest = hashlib.sha256()
    for name, status in entries:
        line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def read_images(
    path: str | Path,
    listed: Mapping[str, int],
    splits: dict[str, list[str]],
    square: Square,
    start: int,
) -> Generator[tuple[str, int, Encoded]]:
    """Yield (split, index, image to decode) for each name of `splits`, in the archive's order.

    `listed` is what `list_images` gave; the first `start` images are passed over. A folder or zip
    is read when an image is decoded, a tar on the way; nothing is extracted to disk.
    """
    path = Path(path)
    place = {name: (split, i) for split in SPLITS for i, name in enumerate(splits[split])}

    def encoded(name: str, shown: str, opener: Callable[[], IO[bytes]], held: int = 0) -> Encoded:
        return Encoded(
            name=name, decode=partial(decode_image, opener, shown, square), held_bytes=held
        )

    def wanted(name: str, offset: int) -> bool:
        return name in place and listed[name] == offset

    if path.is_dir():
        for name in sorted(place)[start:]:
            yield *place[name], encoded(name, str(path / name), partial(io.FileIO, path / name))
    elif path.name.lower().endswith(".zip"):
        with _archive_errors(path):
            archive = zipfile.ZipFile(path)  # read by threads; closed with the last image
        named = ((_normal(_zip_name(info)), info) for info in archive.infolist())
        infos = ((name, info) for name, info in named if wanted(name, info.header_offset))
        for name, info in itertools.islice(infos, start, None):
            shown = f"{path}: {info.filename}"
            yield *place[name], encoded(name, shown, partial(archive.open, info))
    else:
        with _archive_errors(path), tarfile.open(path, "r:*") as tar:
            members = (m for m in _members(tar) if m.isreg() and wanted(_normal(m.name), m.offset))
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

    As it is shown: turned as its orientation tag says, and what is transparent lies on white. An
    image that has the size already is not resampled. Raises DataError that begins with `name`: no
    PNG, JPEG, BMP, WebP or GIF, damaged, of other sides than permitted, over 2^26 pixels, 16-bit.
    """
    # Whole file in memory: image decoders seek backwards, which restarts a compressed archive.
    data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{name}: over {MAX_FILE_BYTES // 2**20} MiB for one image: refused")
    low, high = square.sides
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size  # from the header: no pixel is decoded yet
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width}x{height} pixels")
            if not low <= min(width, height) <= max(width, height) <= high:
                wanted = f"{low}" if low == high else f"at least {low}"
                raise DataError(f"{name}: is {width}x{height}; sides of {wanted} are needed")
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{name}: has {image.mode} pixels; convert it to 8 bits a channel")
            image.load()
            return np.asarray(_resized(_as_shown(image), square)).transpose(2, 0, 1)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: over {MAX_PIXELS} pixels: refused ({error})") from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise DataError(f"{name}: cannot be decoded as an image (is none of {kinds})") from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        reason = str(error) or type(error).__name__
        raise DataError(f"{name}: cannot be decoded as an image ({reason})") from error


def _as_shown(image: Image.Image) -> Image.Image:
    """Return a decoded image as viewers show it, in RGB."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged tag is no damage of the picture: it is shown as it is stored
        turn = None
    shown = image if turn is None else image.transpose(turn)
    if min(shown.size) * MAX_ASPECT < max(shown.size):
        most = min(shown.size) * MAX_ASPECT
        shown = _centre(shown, min(shown.width, most), min(shown.height, most))
    if not shown.has_transparency_data:
        return shown.convert("RGB")
    rgba = shown.convert("RGBA")  # what is under transparent pixels is no colour of the picture
    return Image.alpha_composite(Image.new("RGBA", rgba.size, BACKGROUND), rgba).convert("RGB")


def _resized(rgb: Image.Image, square: Square) -> Image.Image:
    if square.crop is not None:
        rgb = _centre(rgb, square.crop, square.crop)
    if (side := min(rgb.size)) != square.size:
        scale = square.size / side
        width, height = (max(square.size, round(length * scale)) for length in rgb.size)
        rgb = rgb.resize((width, height), square.resample)
    return _centre(rgb, square.size, square.size)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members one by one; tarfile would keep each of them in memory."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]
        yield member


def _reason_to_leave_out(name: str) -> str:
    """Say as what the file of a name is left out; "" for an image."""
    *folders, base = PurePosixPath(name).parts
    if any(map(_is_hidden, folders)):
        return "in hidden or tools' folders"
    if _is_hidden(base):
        return "hidden files"
    if base.lower().endswith(IMAGE_SUFFIXES):
        return ""
    return PurePosixPath(base).suffix.lower() or "without a suffix"


def _is_hidden(part: str) -> bool:
    return (part.startswith(".") and part != "..") or part.lower() in TOOL_FOLDERS


def _zip_name(info: zipfile.ZipInfo) -> str:
    return info.filename.replace("\\", "/")  # as some zippers on Windows write it


def _normal(name: str) -> str:
    return "/".join(part for part in PurePosixPath(name).parts if part not in ("/", "."))


def _walk(folder: Path) -> tuple[list[str], Counter[str]]:
    """Return the names of a folder's images, in no order, and how many files of what are left out.

    The names do not depend on the order of creation: real folders come before links to folders, and
    each folder is walked once.
    """
    root = os.path.realpath(folder)
    names: list[str] = []
    aliases: dict[str, list[str]] = {}  # names of files that are not at that place, by real path
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    folders, links = [("", root)], list[tuple[str, str]]()
    while folders or links:
        prefix, real = folders.pop() if folders else links.pop(0)
        if real in seen:
            left_out["links to folders that are here"] += 1
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(real), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{folder}: cannot be read ({error})") from error
        for entry in entries:
            name = prefix + entry.name
            if os.path.isdir(entry.path):  # False, too, for a link to itself
                if _is_hidden(entry.name):
                    left_out["hidden or tools' folders"] += 1
                elif entry.is_symlink():
                    links.append((f"{name}/", os.path.realpath(entry.path)))
                else:
                    folders.append((f"{name}/", entry.path))
            elif reason := _reason_to_leave_out(entry.name):
                left_out[reason] += 1
            elif not os.path.isfile(entry.path):
                left_out["links to nothing, or no files"] += 1
            else:
                names.append(name)
                path = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                if path != f"{root}/{name}":
                    aliases.setdefault(path, []).append(name)
    repeated = _repeated(set(names), aliases, root, folder) if aliases else set()
    if repeated:
        left_out["other names of the same images"] += len(repeated)
        names = [name for name in names if name not in repeated]
    return names, left_out


def _repeated(names: set[str], aliases: dict[str, list[str]], root: str, folder: Path) -> set[str]:
    """Return all names but one of each file that has several."""
    repeated: set[str] = set()
    for path, others in aliases.items():
        own = path.removeprefix(f"{root}/")
        here = [own, *others] if own in names and own != path else others
        splits = {split: name for name in here if (split := split_of(name))}
        if len(splits) > 1:
            raise DataError(f"{folder}: {splits['train']} and {splits['test']} are the same file")
        # One in train/ or test/ says more than where else the file is.
        kept = min(here, key=lambda name: (split_of(name) is None, name != own, name))
        repeated.update(name for name in here if name != kept)
    return repeated


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
