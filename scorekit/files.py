"""Files that are whole or absent: atomic writes, JSON, digests, and putting damaged files aside."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

__all__ = [
    "CorruptFile",
    "atomic_write",
    "read_json",
    "save_array",
    "set_aside",
    "sha256_file",
    "write_bytes",
    "write_json",
]


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


def fsync_directory(directory: Path) -> None:
    """Make renames inside `directory` survive a power cut (POSIX; nothing to do elsewhere)."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` atomically as JSON: sorted keys, indent 1, a newline at the end.

    Raises ValueError for NaN and infinities (JSON has none: give None), TypeError for what is not
    JSON.
    """
    text = json.dumps(obj, sort_keys=True, indent=1, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` atomically."""

    def write(file: BinaryIO) -> None:
        file.write(data)

    atomic_write(path, write)


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raises CorruptFile where it does not parse, FileNotFoundError if absent."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise CorruptFile(path, f"is not JSON ({error})") from error


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
