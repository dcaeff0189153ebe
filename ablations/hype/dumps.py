"""Dumps of fakes and reals as human raters get them, read as a stranger's: a folder or a zip."""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from scorekit.files import atomic_write

KINDS = ("fake", "real")
MAX_SIDE = 1024
MAX_IMAGE_BYTES = 2**24
MAX_MANIFEST_BYTES = 2**26
MAX_IMAGES = 100_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+-]{0,199}")
_IMAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}\.png")
# Signature, length and name of the first chunk, width, height, bit depth, colour type.
_PNG_HEADER = struct.Struct(">8s4x4sIIBB")
_EPOCH = (1980, 1, 1, 0, 0, 0)
# RuntimeError: an encrypted member, or an unknown compression.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError)


@dataclass(frozen=True, kw_only=True)
class HypeDump:
    """Fakes and reals of one model that may stand before raters.

    `digest` identifies it by its images' bytes and truth, so that its folder and its zip are one
    dump. `images` maps "fake" and "real" to names and the SHA-256 of each file. `width` and
    `height` are in pixels, of every image.
    """

    source: _Folder | _Zip
    name: str
    digest: str
    manifest: dict[str, Any]
    images: dict[str, dict[str, str]]
    width: int
    height: int

    @property
    def path(self) -> Path:
        """Where the dump lies; a zip may hold others beside it."""
        return self.source.path

    @property
    def label(self) -> dict[str, Any]:
        """What the manifest says of the model, as far as it says it in the expected types."""
        variant, dataset = self.manifest.get("variant"), self.manifest.get("dataset")
        seed, denoise = self.manifest.get("seed"), self.manifest.get("denoise")
        return {
            "dump": self.digest,
            "name": self.name,
            "model": _printable(variant) if isinstance(variant, str) else self.name,
            "dataset": _printable(dataset) if isinstance(dataset, str) else "—",
            "seed": seed if type(seed) is int and abs(seed) < 2**63 else None,
            "denoise": denoise if type(denoise) is bool else None,
        }

    def read(self, kind: str, name: str) -> bytes:
        """One image's file; raises ValueError where it is no longer what it was when opened."""
        data = self.source.read(self.name, f"{kind}/{name}", MAX_IMAGE_BYTES)
        if hashlib.sha256(data).hexdigest() != self.images[kind][name]:
            raise ValueError(f"{self.path}: {kind}/{name} has changed since the dump was opened")
        return data

    def pixels(self, kind: str, name: str) -> np.ndarray:
        """One image, uint8 (H, W, 3); raises ValueError as `read` does."""
        return _decode(self.read(kind, name), f"{self.path}: {kind}/{name}")


def open_dumps(path: Path | str, *, decode: bool = True) -> list[HypeDump]:
    """The dumps of a folder (one) or a zip (one or several), every image read and checked.

    Nothing is extracted or followed: names outside the dump, symbolic links, images above 1024
    pixels a side, of several sizes, or not 8-bit grey or RGB PNGs raise ValueError, in one line;
    so do images whose pixels cannot be decoded unless `decode` is False.
    """
    source = _source(Path(path))
    return [_read(source, name, decode=decode) for name in source.names]


def pack_dumps(dumps: Sequence[HypeDump], out: Path) -> Path:
    """Write one zip of `dumps`, the manifests with each image's SHA-256; the same bytes each time.

    PNGs are compressed already, and stored as they are: what zlib makes of them would depend on
    its version. Raises ValueError for two dumps of one name or an image that changed.
    """
    names = [dump.name for dump in dumps]
    if len(set(names)) < len(names):
        raise ValueError(f"{out}: two dumps have the same name among {', '.join(names)}")

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for dump in dumps:
                _pack(dump, archive)

    atomic_write(out, write)
    return out


def _pack(dump: HypeDump, archive: zipfile.ZipFile) -> None:
    def add(name: str, data: bytes) -> None:
        member = zipfile.ZipInfo(f"{dump.name}/{name}", _EPOCH)
        member.create_system = 3  # else it says on which system it was made
        member.external_attr = (stat.S_IFREG | 0o644) << 16
        archive.writestr(member, data)

    entries = [
        entry | {f"{kind}_sha256": dump.images[kind][entry["file"]] for kind in KINDS}
        for entry in dump.manifest["images"]
    ]
    # Without the launcher's own checksum, which is of the entries without the images'.
    described = {key: value for key, value in dump.manifest.items() if key != "sha256"}
    manifest = json.dumps(described | {"images": entries}, sort_keys=True, indent=1)
    add("manifest.json", manifest.encode() + b"\n")
    for kind in KINDS:
        for name in dump.images[kind]:
            add(f"{kind}/{name}", dump.read(kind, name))


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = [path.resolve().name]

    def read(self, name: str, member: str, limit: int) -> bytes:
        path = self.path / member
        for part in (path.parent, path) if path.parent != self.path else (path,):
            if part.is_symlink():
                raise ValueError(f"{part} is a symbolic link; a dump holds plain files only")
        if not path.is_file():
            raise ValueError(f"{self.path}: {member} is missing or not a plain file")
        with open(path, "rb") as file:
            return _bounded(file, limit, f"{self.path}: {member}")


class _Zip:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Open as long as its dumps are: to read the names of 10,000 members takes a while.
            self.archive = zipfile.ZipFile(path)
        except _ZIP_ERRORS as error:
            raise ValueError(f"{path}: cannot be read as a zip ({error})") from error
        self.members = {info.filename: info for info in self.archive.infolist()}
        if len(self.members) < len(self.archive.infolist()):
            raise ValueError(f"{path}: two members have the same name")
        for info in self.archive.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(f"{path}: member {info.filename!r:.120} is a symbolic link")
            if not _expected(info.filename):
                raise ValueError(
                    f"{path}: member {info.filename!r:.120} is not NAME/manifest.json, "
                    "NAME/fake/IMAGE.png or NAME/real/IMAGE.png"
                )
        self.names = [n.split("/")[0] for n in self.members if n.endswith("/manifest.json")]
        if not self.names:
            raise ValueError(f"{path}: holds no NAME/manifest.json, so it is no dump")

    def read(self, name: str, member: str, limit: int) -> bytes:
        info = self.members.get(f"{name}/{member}")
        if info is None:
            raise ValueError(f"{self.path}: {name}/{member} is missing")
        try:
            with self.archive.open(info) as file:
                return _bounded(file, limit, f"{self.path}: {name}/{member}")
        except _ZIP_ERRORS as error:
            raise ValueError(f"{self.path}: {name}/{member} cannot be read ({error})") from error


def _source(path: Path) -> _Folder | _Zip:
    if path.is_dir():
        return _Folder(path)
    if path.is_file():
        return _Zip(path)
    raise ValueError(f"{path}: no such dump (a folder with manifest.json, or a zip of such)")


def _expected(member: str) -> bool:
    name, _, rest = member.partition("/")
    if not _NAME.fullmatch(name):
        return False
    if rest in ("", "fake/", "real/", "manifest.json"):
        return "/" in member
    kind, _, image = rest.partition("/")
    return kind in KINDS and _IMAGE_NAME.fullmatch(image) is not None


def _bounded(file: Any, limit: int, what: str) -> bytes:
    data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{what} is larger than {limit:,} bytes")
    return data


def _read(source: _Folder | _Zip, name: str, *, decode: bool) -> HypeDump:
    manifest, names = _manifest(source, name)
    total = hashlib.sha256()
    images: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    size: tuple[int, int] | None = None
    for entry, image in zip(manifest["images"], names, strict=True):
        for kind in KINDS:
            what = f"{source.path}: {kind}/{image}"
            data = source.read(name, f"{kind}/{image}", MAX_IMAGE_BYTES)
            found = _png_size(data, what)
            size = size or found
            if found != size:
                raise ValueError(
                    f"{what} has {found[0]}×{found[1]} pixels, others {size[0]}×{size[1]}: "
                    "the size would give the truth away"
                )
            digest = hashlib.sha256(data).hexdigest()
            if entry.get(f"{kind}_sha256", digest) != digest:
                raise ValueError(f"{what} does not have the SHA-256 that the manifest gives")
            if decode:
                _decode(data, what)
            images[kind][image] = digest
            total.update(f"{kind} {digest}\n".encode())
    assert size is not None
    return HypeDump(
        source=source,
        name=name,
        digest=total.hexdigest(),
        manifest=manifest,
        images=images,
        width=size[0],
        height=size[1],
    )


def _manifest(source: _Folder | _Zip, name: str) -> tuple[dict[str, Any], list[str]]:
    where = f"{source.path}: manifest.json"
    if not _NAME.fullmatch(name):
        raise ValueError(f"{source.path}: a dump's name is made of letters, digits and _.,+- only")
    try:
        manifest = json.loads(source.read(name, "manifest.json", MAX_MANIFEST_BYTES))
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{where} is not JSON ({type(error).__name__})") from error
    entries = manifest.get("images") if isinstance(manifest, dict) else None
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_IMAGES:
        raise ValueError(f'{where} must list 1 to {MAX_IMAGES:,} images under "images"')
    names: list[str] = []
    for entry in entries:
        image = entry.get("file") if isinstance(entry, dict) else None
        if not isinstance(image, str) or not _IMAGE_NAME.fullmatch(image):
            raise ValueError(f"{where} names an image {image!r:.120}; right would be '00000.png'")
        names.append(image)
    if len(set(names)) < len(names):
        raise ValueError(f"{where} names an image twice")
    return manifest, names


def _png_size(data: bytes, what: str) -> tuple[int, int]:
    """Width and height, read before anything is decoded."""
    if len(data) < _PNG_HEADER.size or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise ValueError(f"{what} is not a PNG")
    _, _, width, height, depth, colour = _PNG_HEADER.unpack_from(data)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(f"{what} has {width}×{height} pixels; at most {MAX_SIDE} a side are shown")
    if depth != 8 or colour not in (0, 2):
        raise ValueError(f"{what} is not 8-bit grey or RGB")
    return width, height


def _decode(data: bytes, what: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise ValueError(f"{what} cannot be decoded ({_printable(str(error))})") from error


def _printable(text: str) -> str:
    """A stranger's text as one line without control characters, 80 at most."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:80]
