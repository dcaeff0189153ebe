"""A data set on disk: two memory-mapped uint8 arrays and, written last, the file that vouches."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import sys
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scorekit.files import CorruptFile, read_sealed_json, write_sealed_json

log = logging.getLogger("scorekit")

__all__ = [
    "SPLITS",
    "DataError",
    "Dataset",
    "Encoded",
    "KnownDataset",
    "Request",
    "Source",
    "Splits",
    "check",
    "check_source",
    "npy_header",
    "open_store",
    "write_record",
]

FORMAT_VERSION = 1
SPLITS = ("train", "test")
CHUNK_BYTES = 2**24


class DataError(ValueError):
    """A data set that is unknown or cannot be read: one line that says what would be right."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """An opened store: `train` and `test` are read-only uint8 (N, C, H, W), 0..255.

    `flip` says whether a horizontal flip is a sensible augmentation; `fingerprint` is the SHA-256
    over the shapes and bytes of both splits; `directory` is the store; `left_out` names the corrupt
    images that preparation was told to skip.
    """

    name: str
    train: np.ndarray = field(repr=False)
    test: np.ndarray = field(repr=False)
    flip: bool
    fingerprint: str
    directory: Path | None = None
    left_out: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """C."""
        return int(self.train.shape[1])

    @property
    def image_size(self) -> int:
        """H, which is W."""
        return int(self.train.shape[2])

    @property
    def dim(self) -> int:
        """C * H * W, the D of the paper."""
        return int(np.prod(self.train.shape[1:]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """An image not decoded yet: `decode()` gives uint8 (C, H, W), or raises DataError naming it.

    `decode` is called once, in any thread. `name` is the image's within its source; `held_bytes`
    what the object keeps in memory until then.
    """

    name: str
    decode: Callable[[], np.ndarray]
    held_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What a source yields: `images(start)` gives (split, index, image), each index once.

    An image is uint8 (C, H, W) or `Encoded`. The order is the same at every call, and the first
    `start` images are passed over: so an interrupted preparation goes on, under an equal `version`,
    a text that changes with the content. The generator is closed at the end, whatever it was.
    """

    shape: tuple[int, int, int]
    n_train: int
    n_test: int
    images: Callable[[int], Generator[tuple[str, int, np.ndarray | Encoded]]]
    version: str = ""

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Splits:
        """Wrap uint8 (N, C, H, W) arrays "train" and "test"."""
        c, h, w = arrays["train"].shape[1:]
        digest = hashlib.sha256()

        def images(start: int) -> Generator[tuple[str, int, np.ndarray]]:
            everything = ((split, i, x) for split in SPLITS for i, x in enumerate(arrays[split]))
            yield from itertools.islice(everything, start, None)

        for split in SPLITS:
            digest.update(np.ascontiguousarray(arrays[split]).data)
        return cls(
            shape=(c, h, w),
            n_train=len(arrays["train"]),
            n_test=len(arrays["test"]),
            images=images,
            version=digest.hexdigest(),
        )


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that could be made: its name, its store's name, and how to read it (`build`).

    `path` is what it is read from, where the store's name does not say so: the store records it.
    """

    name: str
    store: str
    flip: bool
    build: Callable[[], Splits]
    path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `prepare` was asked for: `argument` is what follows the colon of the name, or None."""

    argument: str | None
    image_size: int | None
    seed: int
    root: Path


@dataclass(frozen=True, kw_only=True)
class KnownDataset:
    """A data set by name: `source` answers a request, `spelling` is how errors show the name.

    `about` says in a few words what it is, `place` where it is to be had, and `download(folder)`,
    if any, fetches it there. `counts` are the published numbers of train and test images.
    """

    source: Callable[[Request], Source]
    spelling: str
    about: str = ""
    place: str = ""
    counts: tuple[int, int] | None = None
    download: Callable[[Path], None] | None = None


def check(dataset_dir: str | Path) -> None:
    """Verify every byte of a store against its store.json; CorruptFile names what disagrees."""
    directory = Path(dataset_dir)
    dataset = open_store(directory)
    record = read_sealed_json(directory / "store.json")
    shapes = {split: getattr(dataset, split).shape for split in SPLITS}
    found, fingerprint = _digests(directory, shapes)
    for split in SPLITS:
        if found[split] != record["splits"][split].get("sha256"):
            raise CorruptFile(
                directory / f"{split}.npy", "its bytes disagree with the SHA-256 in store.json"
            )
    if fingerprint != dataset.fingerprint:
        raise CorruptFile(directory / "store.json", "its fingerprint is not that of the images")


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy file of uint8; its length does not depend on the first axis."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
    )
    return header.getvalue()


def write_record(
    directory: str | Path,
    source: Source,
    shapes: dict[str, tuple[int, ...]],
    left_out: list[str],
    version: str,
) -> None:
    """Write the store.json of a directory that holds the whole train.npy and test.npy.

    `version` is that of the `Splits` of which they were made.
    """
    directory = Path(directory)
    digests, fingerprint = _digests(directory, shapes)
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": source.name,
        "flip": source.flip,
        "fingerprint": fingerprint,
        "left_out": left_out,
        "splits": {
            split: {
                "shape": list(shapes[split]),
                "bytes": (directory / f"{split}.npy").stat().st_size,
                "sha256": digests[split],
            }
            for split in SPLITS
        },
    }
    if source.path is not None:
        stamp = _stamp(source.path)
        record["source"] = {"path": str(source.path), "stamp": stamp, "version": version}
    write_sealed_json(directory / "store.json", record)


def check_source(directory: str | Path, source: Source) -> None:
    """Raise DataError unless a store was made from what `source.path` holds.

    The same files elsewhere are the same source, and so is a path from which it was made and that
    is no longer there. A store of before sources were recorded is taken, with a warning.
    """
    path, name = source.path, Path(directory) / "store.json"
    if path is None:
        return
    record = read_sealed_json(name).get("source")
    if record is None:
        log.warning("%s does not say what it was made from: %s is not looked at", directory, path)
        return
    wanted = ("path", "stamp", "version")
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in wanted):
        raise CorruptFile(name, f"its source is {record!r}; {', '.join(wanted)} are right")
    is_its_own = record["path"] == str(path)
    if not path.exists():
        if not is_its_own:
            raise DataError(f"{path}: no such folder or file")
    elif record["stamp"] != _stamp(path) and record["version"] != source.build().version:
        before = "as it was before" if is_its_own else f"not from {path}"
        raise DataError(
            f"dataset={source.name}: {directory} was made from {record['path']}, {before}; leave "
            "the path out to take it so, or give another data root, or remove that store"
        )


def _stamp(path: Path) -> str:
    """Return a SHA-256 of the names, sizes and times of change of a file, or of all in a folder."""
    files = [path] if not path.is_dir() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        if file.name != "lock.mdb":  # readers write to it
            status = file.stat()
            name = str(file.relative_to(path)).encode("utf-8", "surrogateescape")
            digest.update(b"%b\0%d\0%d\n" % (name, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def open_store(directory: str | Path) -> Dataset:
    """Open a store without reading its pixels; CorruptFile where its parts do not fit."""
    directory = Path(directory)
    path = directory / "store.json"
    try:
        record = read_sealed_json(path)
        if record["format_version"] != FORMAT_VERSION:
            raise CorruptFile(
                path, f"format version {record['format_version']!r}, not {FORMAT_VERSION}"
            )
        arrays = {}
        for split in SPLITS:
            path = directory / f"{split}.npy"
            wanted = record["splits"][split]
            if path.stat().st_size != wanted["bytes"]:
                raise CorruptFile(path, f"{path.stat().st_size} bytes, not {wanted['bytes']}")
            array = np.load(path, mmap_mode="r")
            if array.dtype != np.uint8 or list(array.shape) != wanted["shape"]:
                raise CorruptFile(path, f"{array.dtype} {array.shape}, not {wanted['shape']}")
            arrays[split] = array
        path = directory / "store.json"
        return Dataset(
            name=str(record["name"]),
            flip=bool(record["flip"]),
            directory=directory,
            fingerprint=str(record["fingerprint"]),
            left_out=tuple(map(str, record.get("left_out", []))),  # absent in older stores
            **arrays,
        )
    except (KeyError, TypeError, ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise CorruptFile(path, f"{type(error).__name__}: {error}") from error


def _digests(directory: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, str], str]:
    """Return the SHA-256 of each split's file and the fingerprint, in one reading of the files.

    Read and not mapped: mapped pages would count as this process's memory.
    """
    fingerprint, of_files = hashlib.sha256(), {}
    paths = {split: directory / f"{split}.npy" for split in SPLITS}
    with tqdm(
        total=sum(path.stat().st_size for path in paths.values()),
        desc=f"{directory.name}: digests",
        unit="B",
        unit_scale=True,
        delay=2,
        disable=not sys.stderr.isatty(),
    ) as bar:
        for split, path in paths.items():
            of_file = hashlib.sha256()
            with open(path, "rb") as file:
                of_file.update(file.read(len(npy_header(shapes[split]))))
                fingerprint.update(repr(tuple(int(n) for n in shapes[split])).encode())
                while chunk := file.read(CHUNK_BYTES):
                    of_file.update(chunk)
                    fingerprint.update(chunk)
                    bar.update(len(chunk))
            of_files[split] = of_file.hexdigest()
    return of_files, fingerprint.hexdigest()
