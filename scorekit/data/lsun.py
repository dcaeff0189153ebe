"""LSUN as distributed: an lmdb of encoded images for each split."""

from __future__ import annotations

import io
import itertools
from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scorekit.data.imagefolder import Square, decode_image
from scorekit.data.store import DataError, Encoded, Splits

if TYPE_CHECKING:
    import lmdb


__all__ = ["lsun_splits"]

FOLDERS = {"train": "train", "test": "val"}
SLAB = 4096  # images


def lsun_splits(category: str, path: str | Path, square: Square) -> Splits:
    """Return the splits of a category: its train lmdb, and its val lmdb as "test".

    `path` holds CATEGORY_train_lmdb and CATEGORY_val_lmdb, or is one of them. Images are in the
    order of their keys, which is the lmdb's own, so no list of keys is kept. Raises DataError.
    """
    path = Path(path)
    names = {split: f"{category}_{part}_lmdb" for split, part in FOLDERS.items()}
    base = path.parent if path.name in names.values() else path
    folders = {split: base / name for split, name in names.items()}
    counts = {}
    for split, folder in folders.items():
        with _opened(folder) as database:
            counts[split] = database.stat()["entries"]
    stats = [(folder / "data.mdb").stat() for folder in folders.values()]
    return Splits(
        shape=(3, square.size, square.size),
        n_train=counts["train"],
        n_test=counts["test"],
        images=partial(_images, folders, counts, square),
        version=f"{square} {[(stat.st_size, stat.st_mtime_ns) for stat in stats]}",
    )


def _opened(folder: Path) -> lmdb.Environment:
    import lmdb

    if not (folder / "data.mdb").is_file():
        raise DataError(f"{folder}: has no data.mdb; unpack {folder.name}.zip there")
    try:
        # No lock: the data may lie on a read-only disk, and nobody writes to them.
        database = lmdb.open(str(folder), readonly=True, lock=False, create=False)
    except lmdb.Error as error:
        raise DataError(f"{folder}: is not a readable lmdb ({error})") from error
    needed = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
    size = (folder / "data.mdb").stat().st_size
    if size < needed:  # reading past the end of a mapped file kills the process
        database.close()
        raise DataError(f"{folder / 'data.mdb'}: is cut off: {size} of {needed} bytes are there")
    return database


def _images(
    folders: dict[str, Path], counts: dict[str, int], square: Square, start: int
) -> Generator[tuple[str, int, Encoded]]:
    for split, folder in folders.items():
        with closing(_values(folder, counts[split], start)) as values:
            for index, name, data in values:
                opener = partial(io.BytesIO, data)
                decode = partial(decode_image, opener, f"{folder}: {name}", square)
                name = f"{folder.name}/{name}"
                yield split, index, Encoded(name=name, decode=decode, held_bytes=len(data))
        start = max(0, start - counts[split])


def _values(folder: Path, count: int, start: int) -> Generator[tuple[int, str, bytes]]:
    """Yield (index, key, value) from the start-th on; the values before it are not read."""
    import lmdb

    key, index = b"", 0
    try:
        while index < count:
            # Opened anew for each slab: its pages count as this process's memory while mapped.
            with _opened(folder) as database, database.begin() as transaction:
                cursor = transaction.cursor()
                if index and not (cursor.set_key(key) and cursor.next()):
                    return
                for key in itertools.islice(cursor.iternext(values=False), SLAB):
                    if index >= start:
                        yield index, key.decode("utf-8", "backslashreplace"), cursor.value()
                    index += 1
    except lmdb.Error as error:
        raise DataError(f"{folder}: cannot be read on after {index} images ({error})") from error
