"""Files of tensors that carry their own digest."""

import hashlib
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from scorekit.files import CorruptFile, atomic_write, set_aside

_log = logging.getLogger("scorekit")
_DIGEST_BYTES = 32


def save_tensors(path: str | Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values atomically: torch.save's format, then its SHA-256 (32 bytes).

    torch.load reads such a file as it is: the zip format ignores what follows its end record.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getbuffer()
    digest = hashlib.sha256(data).digest()

    def write(file: Any) -> None:
        file.write(data)
        file.write(digest)

    atomic_write(path, write)


def load_tensors(
    path: str | Path, map_location: str = "cpu", *, keys: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Read what :func:`save_tensors` wrote; raises CorruptFile where a single bit differs.

    So it does for a file with a right checksum that is no dict with these ``keys``, or holds code,
    which is not run.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise CorruptFile(path, "is a directory") from error
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise CorruptFile(path, "its checksum does not agree with its content")
    try:
        content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "weights_only refuses it: it holds more than tensors and plain values"
        raise CorruptFile(path, reason) from error
    except MemoryError:
        raise
    except Exception as error:  # torch raises nearly anything on bytes of another kind
        raise CorruptFile(path, f"holds no tensors ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise CorruptFile(path, f"holds a {type(content).__name__}, no dict")
    if missing := [key for key in keys if key not in content]:
        raise CorruptFile(path, f"has no {missing[0]!r}; it holds {', '.join(map(str, content))}")
    if torch.device(map_location).type == "cpu":
        return content
    # Not before, since what a device may raise is no damage of the file.
    return torch.load(io.BytesIO(body), map_location=map_location, weights_only=True)


def find_tensors(path: str | Path, *, keys: tuple[str, ...] = ()) -> dict[str, Any] | None:
    """Return what :func:`load_tensors` does, or None where there is no file or it is damaged.

    A damaged one is named in the log and set aside.
    """
    try:
        return load_tensors(path, keys=keys)
    except FileNotFoundError:
        return None
    except CorruptFile as error:
        _log.warning("%s; set aside as %s", error, set_aside(path).name)
        return None
