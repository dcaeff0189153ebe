"""Making a store: images decoded in threads, in bounded memory, and continued after a kill."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scorekit.data.store import (
    FORMAT_VERSION,
    SPLITS,
    DataError,
    Encoded,
    Source,
    Splits,
    npy_header,
    write_record,
)
from scorekit.files import CorruptFile, fsync_directory, read_json, write_json
from scorekit.runtime.locks import hold
from scorekit.runtime.machine import usable_cores

log = logging.getLogger("scorekit")

__all__ = ["make_store"]

SAVE_EVERY_S = 5.0
CHUNK_IMAGES = 64  # one task of a thread; fewer where they hold more than
CHUNK_HELD_BYTES = 2**22

Chunk = list[tuple[str, int, np.ndarray | Encoded]]


def make_store(
    source: Source, store: str | Path, *, workers: int | None = None, skip_corrupt: bool = False
) -> None:
    """Make `store` from `source`, or go on where a killed preparation of it stopped.

    The images go into `<store>.partial/`, which is renamed at the end; a second process waits for
    the first. `workers` threads (default: all cores) decode; the bytes do not depend on their
    number. An image that cannot be decoded is a DataError; with `skip_corrupt` it is left out, its
    name is logged and recorded, and the last images of its split fill the gaps.
    """
    store = Path(store)
    with _alone(store.with_name(f".{store.name}.lock")):
        if os.path.lexists(store):
            return  # another process was faster
        partial = store.with_name(f"{store.name}.partial")
        if not _is_finished(partial):
            preparation = _Preparation.of(source, source.build(), partial)
            preparation.run(workers or usable_cores(), skip_corrupt)
        os.rename(partial, store)
        fsync_directory(store.parent)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock `path`, which is there for as long as somebody holds or awaits it."""
    while True:
        with open(path, "a") as file:
            hold(
                file,
                lambda: log.warning("%s is held: waiting for another process's preparation", path),
            )
            try:
                if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    continue
            except FileNotFoundError:
                continue  # its holder has removed it: what was awaited is another file's lock
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_finished(partial: Path) -> bool:
    return (partial / "store.json").is_file() and not (partial / "progress.json").exists()


@dataclass(kw_only=True)
class _Preparation:
    """A store half made: the first `n_done` images of the source's order are in its files."""

    source: Source
    splits: Splits
    directory: Path
    counts: dict[str, int]
    n_done: int = 0
    left_out: list[tuple[str, int, str]] = field(default_factory=list)  # split, index, name
    recorded: bool = False
    _files: dict[str, int] = field(default_factory=dict)  # descriptors

    @classmethod
    def of(cls, source: Source, splits: Splits, directory: Path) -> _Preparation:
        counts = dict(zip(SPLITS, (splits.n_train, splits.n_test), strict=True))
        made = cls(source=source, splits=splits, directory=directory, counts=counts)
        try:
            record = read_json(directory / "progress.json")
            if record["of"] != made._identity():
                raise CorruptFile(directory / "progress.json", "is of another source or version")
            made.n_done = int(record["n_done"])
            made.left_out = [(str(s), int(i), str(name)) for s, i, name in record["left_out"]]
            made.recorded = True
        except FileNotFoundError:
            shutil.rmtree(directory, ignore_errors=True)  # killed before it recorded anything
        except (CorruptFile, KeyError, TypeError, ValueError) as error:
            log.warning("%s cannot be continued (%s): started again", directory, error)
            shutil.rmtree(directory)
        return made

    def run(self, workers: int, skip_corrupt: bool) -> None:
        """Do what is left to do; what is recorded is kept whatever happens, the rest removed."""
        if self.left_out and not skip_corrupt:
            raise DataError(
                f"dataset={self.source.name}: the interrupted preparation in {self.directory} has "
                f"left out {self.left_out[0][2]}, which is corrupt; go on with skip_corrupt "
                "(--skip-corrupt), or remove that folder"
            )
        self._check_disk()
        self.directory.mkdir(exist_ok=True)
        for path in self.directory.glob(".*.tmp"):  # of an atomic write that was killed
            path.unlink()
        try:
            with ExitStack() as stack:
                for split in SPLITS:
                    path = self.directory / f"{split}.npy"
                    self._files[split] = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                    stack.callback(os.close, self._files[split])
                if self.n_done < sum(self.counts.values()):
                    self._fill(workers, skip_corrupt)
                shapes = self._close_gaps()
            names = [name for _, _, name in sorted(self.left_out)]
            write_record(self.directory, self.source, shapes, names, self.splits.version)
            (self.directory / "progress.json").unlink(missing_ok=True)
        except BaseException:
            if not self.recorded:
                shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def _identity(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "store": self.source.store,
            "version": self.splits.version,
            "shape": list(self.splits.shape),
            "counts": self.counts,
        }

    def _check_disk(self) -> None:
        size = int(np.prod(self.splits.shape)) * sum(self.counts.values())
        there = [self.directory / f"{split}.npy" for split in SPLITS]
        size -= sum(path.stat().st_blocks * 512 for path in there if path.exists())
        parent = self.directory.parent
        if (free := shutil.disk_usage(parent).free) < size + 2**20:
            raise DataError(
                f"dataset={self.source.name}: needs {size / 1e6:.0f} MB in {parent}, "
                f"where {free / 1e6:.0f} MB are free"
            )

    def _fill(self, workers: int, skip_corrupt: bool) -> None:
        for split, file in self._files.items():
            os.ftruncate(file, self._place(split, self.counts[split]))
        total, saved = sum(self.counts.values()), time.monotonic()
        with (
            closing(self.splits.images(self.n_done)) as images,
            ThreadPoolExecutor(workers) as pool,
            tqdm(
                total=total,
                initial=self.n_done,
                unit="image",
                desc=self.source.name,
                disable=not sys.stderr.isatty(),
            ) as bar,
        ):
            tasks = _in_order(pool, self._write, _chunks(images), 2 * workers)
            try:
                for n, corrupt in tasks:
                    for split, index, name, error in corrupt:
                        if not skip_corrupt:
                            raise error
                        log.warning("dataset=%s: left out: %s", self.source.name, error)
                        self.left_out.append((split, index, name))
                    self.n_done += n
                    bar.update(n)
                    if time.monotonic() - saved >= SAVE_EVERY_S:
                        self._save()
                        saved = time.monotonic()
            finally:
                tasks.close()
        if self.n_done != total:
            raise DataError(
                f"dataset={self.source.name}: {total - self.n_done} images vanished while they "
                "were read"
            )
        if self.recorded:  # closing gaps changes what an older record speaks of
            self._save()

    def _write(self, chunk: Chunk) -> tuple[int, list[tuple[str, int, str, DataError]]]:
        """Decode and write a chunk, in a thread; return its length and what is corrupt in it."""
        corrupt = []
        for split, index, image in chunk:
            if isinstance(image, Encoded):
                try:
                    pixels = image.decode()
                except DataError as error:
                    corrupt.append((split, index, image.name, error))
                    continue
            else:
                pixels = image
            if pixels.shape != self.splits.shape or pixels.dtype != np.uint8:
                raise ValueError(f"an image is {pixels.dtype} {pixels.shape}: a loader's mistake")
            self._put(split, self._place(split, index), pixels.tobytes())
        return len(chunk), corrupt

    def _place(self, split: str, index: int) -> int:
        shape = (self.counts[split], *self.splits.shape)
        return len(npy_header(shape)) + index * int(np.prod(self.splits.shape))

    def _put(self, split: str, place: int, data: bytes) -> None:
        if os.pwrite(self._files[split], data, place) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{self.directory}/{split}.npy")

    def _save(self) -> None:
        for file in self._files.values():  # the images are on the disk before the record says so
            os.fsync(file)
        record = {"of": self._identity(), "n_done": self.n_done, "left_out": self.left_out}
        write_json(self.directory / "progress.json", record)
        self.recorded = True

    def _close_gaps(self) -> dict[str, tuple[int, ...]]:
        """Move the last images into the places of those left out; write headers; return shapes.

        No image is moved from a place that another is moved to, so it may be done twice.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for split, file in self._files.items():
            gaps = {index for where, index, _ in self.left_out if where == split}
            n = self.counts[split] - len(gaps)
            if n < (least := {"train": 2, "test": 1}[split]):
                raise DataError(
                    f"dataset={self.source.name}: {n} {split} images are left after "
                    f"{len(gaps)} corrupt ones; at least {least} are needed"
                )
            end = self._place(split, n)
            if os.fstat(file).st_size > end:
                to = sorted(index for index in gaps if index < n)
                last = [i for i in range(n, self.counts[split]) if i not in gaps]
                for index, other in zip(to, last, strict=True):
                    size = int(np.prod(self.splits.shape))
                    image = os.pread(file, size, self._place(split, other))
                    self._put(split, self._place(split, index), image)
                os.fsync(file)
                os.ftruncate(file, end)
            shapes[split] = (n, *self.splits.shape)
            self._put(split, 0, npy_header(shapes[split]))
            os.fsync(file)
        return shapes


def _chunks(images: Iterable[tuple[str, int, np.ndarray | Encoded]]) -> Iterator[Chunk]:
    chunk: Chunk = []
    held = 0
    for item in images:
        chunk.append(item)
        held += item[2].held_bytes if isinstance(item[2], Encoded) else item[2].nbytes
        if len(chunk) == CHUNK_IMAGES or held >= CHUNK_HELD_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any], window: int
) -> Generator[Any]:
    """Map `function` over `items`, results in order, at most `window` of them under way."""
    pending: deque[Future[Any]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
