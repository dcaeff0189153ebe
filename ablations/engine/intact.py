"""Which large files were found intact: notes beside them, so that none is read twice for nothing.

A note says of a file its size, its times of writing (mtime) and of any change (ctime), in
nanoseconds, and the checksum that its bytes had then. Whoever writes to a file or copies it gives
it other times: it is read again. What changes bytes behind the system's back, as a failing disk
does, is seen where the bytes are used, and where all are read on purpose.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from pathlib import Path
from typing import Any

from scorekit.files import CorruptFile, read_json, sha256_file

_log = logging.getLogger("scorekit")

#: The notes of a directory's files.
NOTES = "intact.json"
#: Smaller files are read in the time that their note takes.
MIN_BYTES = 2**20
# The coarsest clock of a disk: what was written so lately may be written again at the same time.
_SETTLED_S = 2.0


class IntactFiles:
    """Compares files with their checksums, once in this process and once in a folder's notes.

    With ``reads_all`` nothing is taken from notes.
    """

    def __init__(self) -> None:
        self.reads_all = False
        self._checked: dict[str, dict[str, Any]] = {}

    def check(self, directory: str, checksums: dict[str, str]) -> None:
        """Raise CorruptFile for a file below ``directory`` that is not what its SHA-256 says."""
        notes: dict[str, Any] | None = None
        news = {}
        for name, checksum in checksums.items():
            path = f"{directory}/{name}"
            try:
                stat = os.stat(path)
            except FileNotFoundError as error:
                raise CorruptFile(path, "it is missing") from error
            seen = _note(stat, checksum)
            if self._checked.get(path) == seen:
                continue
            large = stat.st_size >= MIN_BYTES
            if large and notes is None:
                notes = _read_notes(directory)
            if self.reads_all or not large or not notes or notes.get(name) != seen:
                if sha256_file(path) != checksum:
                    raise CorruptFile(path, "its checksum does not agree with its result.json")
                if large and max(stat.st_mtime, stat.st_ctime) < time.time() - _SETTLED_S:
                    news[name] = seen
            self._checked[path] = seen
        if news and any((notes or {}).get(name) != note for name, note in news.items()):
            _write_notes(directory, (notes or {}) | news)


def _note(stat: os.stat_result, checksum: str) -> dict[str, Any]:
    return {
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "sha256": checksum,
    }


def _read_notes(directory: str) -> dict[str, Any]:
    try:
        notes = read_json(f"{directory}/{NOTES}")
    except (OSError, CorruptFile):
        return {}  # the files are read instead
    return notes if isinstance(notes, dict) else {}


def _write_notes(directory: str, notes: dict[str, Any]) -> None:
    """Write the notes whole; not flushed to the disk, since one that is lost costs a reading."""
    temporary = Path(directory) / f".{NOTES}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        temporary.write_text(json.dumps(notes, sort_keys=True, indent=1) + "\n")
        os.replace(temporary, f"{directory}/{NOTES}")
    except OSError as error:
        # A full or read-only disk: results there are as good as before.
        _log.debug("%s: no notes of intact files are kept (%s)", directory, error)
        temporary.unlink(missing_ok=True)
