"""Checkpoints that are whole or absent, and checked before they are trusted.

``python -m scorekit.checkpoints export|import`` moves them: :mod:`scorekit.checkpoint_export`.
"""

import hashlib
import io
import logging
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import torch

from scorekit.files import CorruptFile, atomic_write, set_aside, write_bytes

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


def numbered_files(directory: str | Path, prefix: str) -> list[tuple[int, Path]]:
    """Return (iteration, path) of each ``<prefix>-<iteration>.pt`` in a directory, in order."""
    found = []
    for path in Path(directory).glob(f"{prefix}-*.pt"):
        if match := re.fullmatch(prefix + r"-(\d+)\.pt", path.name):
            found.append((int(match[1]), path))
    return sorted(found)


class CheckpointStore:
    """Rolling checkpoints ``checkpoint-<iteration>.pt`` in a directory: the last two and the best.

    The best, by the caller's judgement, is also kept as ``best-<iteration>.pt``. Beside them stands
    at most one that is ``passing``, ``interim-<iteration>.pt``, until a later one is written: such
    ones, however many, push out none of the others. Neither does a run that had to go back push out
    what it writes: files of iterations beyond it stay until it has come to them.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2) -> None:
        self.directory, self.keep = Path(directory), keep

    def last_iteration(self) -> int:
        """Return the iteration of the newest checkpoint, 0 where there is none."""
        files = [*self._files("checkpoint"), *self._files("interim")]
        return max((iteration for iteration, _ in files), default=0)

    def save(
        self,
        iteration: int,
        content: dict[str, Any],
        *,
        is_best: bool = False,
        passing: bool = False,
    ) -> None:
        """Write a checkpoint, then remove what is no longer to be kept."""
        path = self.directory / f"{'interim' if passing else 'checkpoint'}-{iteration:07d}.pt"
        save_tensors(path, content)
        earlier = [old for i, old in self._files("interim") if i <= iteration and old != path]
        if not passing:
            earlier += [old for i, old in self._files("checkpoint") if i <= iteration][: -self.keep]
        for old in earlier:
            old.unlink()
        if is_best:
            best = self.directory / f"best-{iteration:07d}.pt"
            write_bytes(best, path.read_bytes())
            for _, old in self._files("best"):
                if old != best:
                    old.unlink()

    def _files(self, prefix: str) -> list[tuple[int, Path]]:
        return numbered_files(self.directory, prefix)

    def load_last(
        self,
        map_location: str = "cpu",
        *,
        at_most: int | None = None,
        keys: tuple[str, ...] = (),
    ) -> dict[str, Any] | None:
        """Return the newest intact checkpoint, not after iteration ``at_most``, or None.

        Damaged ones, and those without one of the ``keys``, are set aside.
        """
        prefixes = ("checkpoint", "best", "interim")
        candidates = [file for prefix in prefixes for file in self._files(prefix)]
        for iteration, path in sorted(candidates, reverse=True):
            if at_most is not None and iteration > at_most:
                continue
            try:
                return load_tensors(path, map_location, keys=keys)
            except CorruptFile as error:
                _log.warning("%s; set aside as %s", error, set_aside(path).name)
        return None


if __name__ == "__main__":
    from scorekit.checkpoint_export import main

    sys.exit(main())
