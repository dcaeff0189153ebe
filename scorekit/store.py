"""A data set on disk: two memory-mapped uint8 arrays and, written last, the file that vouches."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scorekit.files import CorruptFile, fsync_directory, read_json, sha256_file, write_json
from scorekit.imagefolder import DataError

__all__ = ["SPLITS", "Dataset", "Source", "Splits", "check", "make_store", "open_store"]

FORMAT_VERSION = 1
SPLITS = ("train", "test")
CHUNK_BYTES = 2**24


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """An opened store: `train` and `test` are read-only uint8 (N, C, H, W), 0..255.

    `flip` says whether a horizontal flip is a sensible augmentation; `fingerprint` is the SHA-256
    over the shapes and bytes of both splits; `directory` is the store.
    """

    name: str
    train: np.ndarray = field(repr=False)
    test: np.ndarray = field(repr=False)
    flip: bool
    fingerprint: str
    directory: Path | None = None

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


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What a source yields: `images()` gives (split, index, uint8 (C, H, W)), each index once."""

    shape: tuple[int, int, int]
    n_train: int
    n_test: int
    images: Callable[[], Iterator[tuple[str, int, np.ndarray]]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that could be made: its name, its store's name, and how to read it (`build`)."""

    name: str
    store: str
    flip: bool
    build: Callable[[], Splits]


def check(dataset_dir: str | Path) -> None:
    """Verify every byte of a store against its store.json; CorruptFile names what disagrees."""
    directory = Path(dataset_dir)
    dataset = open_store(directory)
    record = read_json(directory / "store.json")
    for split in SPLITS:
        path = directory / f"{split}.npy"
        if sha256_file(path) != record["splits"][split]["sha256"]:
            raise CorruptFile(path, "its bytes disagree with the SHA-256 in store.json")
    if _fingerprint(dataset.train, dataset.test) != dataset.fingerprint:
        raise CorruptFile(directory / "store.json", "its fingerprint is not that of the images")


def make_store(source: Source, store: Path) -> None:
    """Build the store beside its place and rename it there; another's finished store is kept."""
    temporary = store.parent / f".{store.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        splits = source.build()
        _write(source, splits, temporary)
        try:
            os.rename(temporary, store)
        except OSError:
            if not (store / "store.json").is_file():
                raise
        fsync_directory(store.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(source: Source, splits: Splits, directory: Path) -> None:
    counts = dict(zip(SPLITS, (splits.n_train, splits.n_test), strict=True))
    size = int(np.prod(splits.shape)) * sum(counts.values())
    # A full disk under a memory map kills the process (SIGBUS): find out before.
    if (free := shutil.disk_usage(directory.parent).free) < size + 2**20:
        raise DataError(
            f"dataset={source.name}: needs {size / 1e6:.0f} MB in {directory.parent}, "
            f"where {free / 1e6:.0f} MB are free"
        )
    directory.mkdir()
    arrays = {
        split: np.lib.format.open_memmap(
            directory / f"{split}.npy", mode="w+", dtype=np.uint8, shape=(n, *splits.shape)
        )
        for split, n in counts.items()
    }
    filled = {split: np.zeros(n, dtype=bool) for split, n in counts.items()}
    for split, index, image in tqdm(
        splits.images(),
        total=sum(counts.values()),
        unit="image",
        desc=source.name,
        disable=not sys.stderr.isatty(),
    ):
        arrays[split][index] = image
        filled[split][index] = True
    if missing := sum(int((~done).sum()) for done in filled.values()):
        raise DataError(f"dataset={source.name}: {missing} images vanished while they were read")
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": source.name,
        "flip": source.flip,
        "splits": {},
        "fingerprint": _fingerprint(arrays["train"], arrays["test"]),
    }
    for split, array in arrays.items():
        path = directory / f"{split}.npy"
        array.flush()
        with open(path, "r+b") as file:  # pages and size are on the disk before store.json is
            os.fsync(file.fileno())
        record["splits"][split] = {
            "shape": list(array.shape),
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
    write_json(directory / "store.json", record)


def open_store(directory: Path) -> Dataset:
    """Open a store without reading its pixels; CorruptFile where its parts do not fit."""
    path = directory / "store.json"
    try:
        record = read_json(path)
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
            **arrays,
        )
    except (KeyError, TypeError, ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise CorruptFile(path, f"{type(error).__name__}: {error}") from error


def _fingerprint(train: np.ndarray, test: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in (train, test):
        digest.update(repr(tuple(int(n) for n in array.shape)).encode())
        step = max(1, CHUNK_BYTES // max(1, int(np.prod(array.shape[1:]))))
        for start in range(0, len(array), step):
            digest.update(array[start : start + step].tobytes())
    return digest.hexdigest()
