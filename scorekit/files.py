"""Files that are whole or absent: atomic writes, JSON, digests, and putting damaged files aside."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

__all__ = [
    "READ_ONLY",
    "CorruptFile",
    "atomic_write",
    "read_json",
    "read_sealed_json",
    "remove_temporaries",
    "save_array",
    "sealed_json",
    "set_aside",
    "sha256_file",
    "write_bytes",
    "write_json",
    "write_sealed_json",
]

# The first lines of a sealed record; the checksum is of all bytes after them.
_SEAL = b'{\n "sha256": "%b",\n'
_SEAL_PATTERN = re.compile(rb'\{\n "sha256": "([0-9a-f]{64})",\n')


# What fsync of a folder says on disks that have no such thing.
_NO_FSYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
#: What writing says where nothing may be written.
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class CorruptFile(RuntimeError):
    """A file that exists but cannot be what it should be; carries `.path` and `.reason`."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        # Exceptions are rebuilt from `args` when they cross a process boundary; ours takes two.
        return type(self), (self.path, self.reason)


def atomic_write(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
    """Make `path` hold what `write(file)` writes, or leave it as it was.

    The bytes go to a temporary file in the same (existing) directory, which is fsynced and renamed
    over `path`. Whatever `write` raises passes through, and the temporary file is removed.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        # Mode "x" honours the umask (tempfile's 0600 would hide results from a user's group).
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def remove_temporaries(directory: str | Path, *, older_s: float = 0.0) -> None:
    """Remove what killed processes left of files and folders they had not finished.

    To be called where no other process writes into ``directory``, or with an age in seconds that no
    unfinished file of a living one has.
    """
    now = time.time()
    for path in Path(directory).glob(".*.tmp"):
        try:
            if now - path.stat().st_mtime < older_s:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            continue  # another process was faster


def fsync_directory(directory: str | Path) -> None:
    """Make renames inside `directory` survive a power cut, where system and disk know how."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(descriptor)


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` atomically as JSON: sorted keys, indent 1, a newline at the end.

    Raises ValueError for NaN and infinities (JSON has none: give None), TypeError for what is not
    JSON.
    """
    write_bytes(path, _json_bytes(obj))


def write_sealed_json(path: str | Path, record: dict[str, Any]) -> None:
    """Write a record atomically as :func:`sealed_json` gives it, which raises ValueError."""
    write_bytes(path, sealed_json(record))


def sealed_json(record: dict[str, Any]) -> bytes:
    """Return a record, not empty, as JSON of which the first entry is the SHA-256 of the others.

    Raises ValueError where the record has an entry "sha256" of its own.
    """
    if "sha256" in record or not record:
        raise ValueError("a record that has no entry, or one called sha256, is not sealed")
    body = _json_bytes(record).removeprefix(b"{\n")
    return _SEAL % hashlib.sha256(body).hexdigest().encode() + body


def _json_bytes(obj: Any) -> bytes:
    return (json.dumps(obj, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` atomically."""

    def write(file: BinaryIO) -> None:
        file.write(data)

    atomic_write(path, write)


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raises CorruptFile where it does not parse, FileNotFoundError if absent."""
    return _parse(path, b"".join(_parts(path)))


def read_sealed_json(path: str | Path) -> dict[str, Any]:
    """Read what `write_sealed_json` wrote; raises CorruptFile where a bit of the entries differs.

    A record without an entry "sha256" is one of before there were seals, and taken as it is.
    """
    data = b"".join(_parts(path))
    seal = _SEAL_PATTERN.match(data)
    if seal and hashlib.sha256(data[seal.end() :]).hexdigest().encode() != seal[1]:
        raise CorruptFile(path, "its checksum does not agree with its content")
    record = _parse(path, data)
    if not isinstance(record, dict):
        raise CorruptFile(path, "is not a JSON object")
    if seal:
        del record["sha256"]
    elif "sha256" in record:
        raise CorruptFile(path, "its checksum is damaged")
    return record


def _parts(path: str | Path) -> Iterator[bytes]:
    """Yield a file's bytes with half the system calls that a file object takes for a small one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while part := os.read(descriptor, 2**18):
            yield part
    except IsADirectoryError as error:
        raise CorruptFile(path, "is a directory") from error
    finally:
        os.close(descriptor)


def _parse(path: str | Path, data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError too
        raise CorruptFile(path, f"is not JSON ({error})") from error


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits; CorruptFile for a directory."""
    digest = hashlib.sha256()
    for part in _parts(path):
        digest.update(part)
    return digest.hexdigest()


def set_aside(path: str | Path) -> Path:
    """Rename a file or directory to `<name>.corrupt-<n>`, first free n from 1; return the new path.

    Raises FileNotFoundError where `path` is not there (any more).
    """
    path = Path(path)
    n = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.corrupt-{n}")):
        n += 1
    os.rename(path, aside)
    return aside


def save_array(path: str | Path, array: np.ndarray) -> Path:
    """Write an array as .npy, whole or not at all; the path."""
    atomic_write(path, lambda file: np.save(file, array))
    return Path(path)


def load_array(path: str | Path, *, mapped: bool = False) -> np.ndarray:
    """Return the array of a .npy file, memory-mapped where asked for; nothing is unpickled.

    Raises CorruptFile for anything else than one array, and OSError where there is no file.
    """
    array = _load(path, lambda: np.load(path, mmap_mode="r" if mapped else None))
    if not isinstance(array, np.ndarray):
        raise CorruptFile(path, "holds several arrays; one, a .npy, is right")
    return array


def load_arrays(path: str | Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Return arrays of a .npz file by name; nothing is unpickled.

    Raises CorruptFile for another file and where one is missing, OSError where there is no file.
    """

    def read() -> dict[str, np.ndarray]:
        with np.load(path) as file:
            return {name: file[name] for name in names}

    arrays: dict[str, np.ndarray] = _load(path, read)
    return arrays


def _load(path: str | Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except OSError:
        raise  # says what is wrong by itself, and names the file
    except Exception as error:  # readers of archives raise nearly anything on other bytes
        raise CorruptFile(path, f"is no file of such arrays ({error})") from error


def write_file(path: str | Path, data: bytes | str) -> Path:
    """Write a file whole or not at all, making its directory; text as UTF-8. Returns its path."""
    path = Path(path)
    content = data.encode("utf-8") if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: _write(file, content))
    return path


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)
