"""Images that come as arrays: CIFAR-10's python batches, read without running them, and MNIST's."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from scorekit.data.store import SPLITS, DataError

__all__ = ["read_cifar10", "read_mnist"]

CIFAR10_BATCHES = {
    "train": [f"data_batch_{number}" for number in range(1, 6)],
    "test": ["test_batch"],
}
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_FOLDER = "cifar-10-batches-py"
MNIST_FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
MAX_BATCH_BYTES = 2**28
IDX_UINT8_3D = 0x00000803  # MNIST's magic number: uint8, three axes


def read_cifar10(path: str | Path) -> dict[str, np.ndarray]:
    """Return uint8 (N, 3, 32, 32) "train" and "test" images of CIFAR-10's python version.

    `path` is cifar-10-python.tar.gz, the folder cifar-10-batches-py or a folder that holds one of
    them. The pickles may hold arrays, bytes, texts, numbers, lists and dicts; anything else is
    refused and never run. Raises DataError naming the file.
    """
    path = Path(path)
    for inner in (CIFAR10_FOLDER, CIFAR10_ARCHIVE):
        if (path / inner).exists():
            path = path / inner
            break
    wanted = [name for split in SPLITS for name in CIFAR10_BATCHES[split]]
    batches = dict(_cifar10_batches(path, set(wanted)))
    if missing := [name for name in wanted if name not in batches]:
        raise DataError(f"{path}: has no {missing[0]}; {CIFAR10_ARCHIVE} or its content is needed")
    return {split: np.concatenate([batches[n] for n in CIFAR10_BATCHES[split]]) for split in SPLITS}


def _cifar10_batches(path: Path, wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    if not path.exists():
        raise DataError(f"{path}: no such folder or file")
    if path.is_dir():
        for name in sorted(wanted):
            if (path / name).is_file():
                with open(path / name, "rb") as file:
                    yield name, _cifar10_images(file.read(MAX_BATCH_BYTES), f"{path / name}")
        return
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                stream = archive.extractfile(member) if name in wanted else None
                if stream is not None:
                    data = stream.read(MAX_BATCH_BYTES)
                    yield name, _cifar10_images(data, f"{path}: {member.name}")
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(
            f"{path}: is not a readable archive ({type(error).__name__}: {error})"
        ) from error


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and plain containers; every other name in a pickle is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused")


def _reconstruct(kind: type, shape: tuple[int, ...], dtype: bytes) -> np.ndarray:
    """Return the empty array that a pickled one is filled into."""
    if kind is not np.ndarray or tuple(shape) != (0,):
        raise pickle.UnpicklingError("it holds an array of another kind")
    return np.ndarray((0,), dtype.decode("ascii"))


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes as Python 3 writes them into pickles of protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it holds bytes encoded as {encoding}")
    return text.encode("latin-1")


def _cifar10_images(data: bytes, shown: str) -> np.ndarray:
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # an unpickler raises nearly anything on damaged bytes
        raise DataError(f"{shown}: is not a batch of CIFAR-10 ({error})") from error
    images = batch.get(b"data", batch.get("data")) if isinstance(batch, dict) else None
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 2
        or images.shape[1] != 3072
    ):
        raise DataError(f"{shown}: is not a batch of CIFAR-10 (no uint8 (N, 3072) array 'data')")
    return images.reshape(-1, 3, 32, 32)


def read_mnist(path: str | Path) -> dict[str, np.ndarray]:
    """Return uint8 (N, 1, 28, 28) "train" and "test" images of MNIST's idx files, plain or .gz.

    `path` is the folder that holds them, or one above MNIST/raw. Raises DataError naming the file.
    """
    path = Path(path)
    folders = (path, path / "MNIST" / "raw", path / "raw")
    return {split: _read_idx(_idx_file(folders, MNIST_FILES[split])) for split in SPLITS}


def _idx_file(folders: tuple[Path, ...], name: str) -> Path:
    for folder in folders:
        for spelling in (name, name.replace("-idx3", ".idx3")):
            for file in (folder / spelling, folder / f"{spelling}.gz"):
                if file.is_file():
                    return file
    raise DataError(f"{folders[0]}: has no {name} or {name}.gz")


def _read_idx(path: Path) -> np.ndarray:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(MAX_BATCH_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    magic, n, height, width = np.frombuffer(data[:16].ljust(16, b"\0"), ">u4").tolist()
    if (magic, height, width) != (IDX_UINT8_3D, 28, 28) or len(data) != 16 + n * height * width:
        raise DataError(
            f"{path}: is not an idx file of 28x28 images, or is damaged (magic number {magic:#x}, "
            f"{n} images of {height}x{width}, {len(data)} bytes)"
        )
    return np.frombuffer(data, np.uint8, offset=16).reshape(n, 1, height, width)
