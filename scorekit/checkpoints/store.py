"""Checkpoints that are whole or absent, and checked before they are trusted."""

import logging
import re
from pathlib import Path
from typing import Any

from scorekit.checkpoints.tensors import load_tensors, save_tensors
from scorekit.files import CorruptFile, set_aside, write_bytes

_log = logging.getLogger("scorekit")


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


def snapshot_path(directory: str | Path, iteration: int) -> Path:
    """Return the file that holds raw and EMA weights after ``iteration`` iterations."""
    return Path(directory) / f"snapshot-{iteration:07d}.pt"
